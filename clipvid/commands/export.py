"""Export of a model: `clipvid export --model outputs/my_videos --format onnx --output my_videos.onnx`."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser

from clipvid import InputError
from clipvid.commands.model_options import add_label_options, add_model_options


def main(args: list[str] | None = None) -> None:
    """Run the verb. Print the description that the file contains as JSON."""
    options = build_parser().parse_args(args)
    if options.labels is not None and options.labels_file is not None:
        raise InputError("--labels and --labels_file exclude each other; use one")

    from clipvid.data.lists.classes import read_classes
    from clipvid.files import json_text, printable
    from clipvid.hub.loading import load_model
    from clipvid.inference.export.formats import check_export_options, export_model

    check_export_options(options.output, options.format, options.text, options.frames, options.dtype)
    labels = options.labels
    if options.labels_file is not None:
        labels = [info.name for info in read_classes(options.labels_file).classes]
    model = load_model(
        options.model, options.pretrained, options.num_frames, labels, options.templates, options.revision
    )
    done = export_model(model, options.output, options.format, options.text, options.frames, options.dtype)
    report = {"file": str(options.output), "bytes": options.output.stat().st_size}
    report |= {"largest_difference": done.difference}
    if done.texts is not None:
        report["texts"] = str(done.texts)
    print(printable(json_text(report)[:-1] + ", " + done.record.to_json()[1:]))


def build_parser() -> ArgumentParser:
    """Build the parser of the verb."""
    parser = ArgumentParser(prog="clipvid export", description="Write a model as one file that runs without clipvid.")
    add_model_options(parser)
    add_label_options(parser)
    parser.add_argument("--output", type=Path, required=True, help="file to write, .onnx or .pt2; must not exist")
    parser.add_argument("--format", type=str, default="onnx", help="onnx, or torch for torch.export")
    parser.add_argument(
        "--text", type=str, default="classes", help="classes to store the class names, input for text features as input"
    )
    parser.add_argument("--frames", type=str, default="fixed", help="fixed, or free for clips of any number of frames")
    parser.add_argument("--dtype", type=str, default="float32", help="float32, float16, or int8 (onnx only)")
    parser.add_argument("--labels_file", type=Path | None, help="class names, one per line, or CSV with id,name")
    return parser
