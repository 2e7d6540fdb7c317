"""Classification of videos: `clipvid predict --model outputs/my_videos clip.mp4 folder/ 'more/**/*.avi'`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser

from clipvid import InputError
from clipvid.files import json_text, printable
from clipvid.inference.video_names import STDIN, SUFFIXES, expand_names

if TYPE_CHECKING:
    from clipvid.data.reader import Source
    from clipvid.inference.predictor import LabelScore, Predictor


def main(args: list[str] | None = None) -> None:
    """Run the verb. Exit with code 1 if a video cannot be read, after processing the others."""
    options = build_parser().parse_args(args)
    labels, videos = separate(options.labels, options.videos)
    if not videos:
        raise InputError("no video was given; expected files, folders, patterns, or - for standard input")
    if labels is not None and options.labels_file is not None:
        raise InputError("--labels and --labels_file exclude each other; use one")
    if options.top_k < 1:
        raise InputError(f"--top_k {options.top_k}: expected at least 1")

    from accelerate import PartialState

    from clipvid.data.lists.classes import read_classes
    from clipvid.data.reader import VideoError
    from clipvid.hub.loading import load_model
    from clipvid.inference.predictor import Predictor

    if options.labels_file is not None:
        labels = [info.name for info in read_classes(options.labels_file).classes]
    model = load_model(
        options.model, options.pretrained, options.num_frames, labels, options.templates, options.revision
    )
    predictor = Predictor(model.to(PartialState().device), options.views)
    failures = 0
    for name in expand_names(videos):
        try:
            report(name, predictor, options)
        except VideoError as error:
            failures += 1
            print(f"clipvid predict: {printable(error)}", file=sys.stderr)
    if failures:
        sys.exit(1)


def build_parser() -> ArgumentParser:
    """Build the parser of the verb."""
    parser = ArgumentParser(prog="clipvid predict", description="Classify videos: JSON lines, or a table on terminals.")
    parser.add_argument("videos", nargs="*", type=str, help="files, folders, patterns, or - for standard input")
    parser.add_argument(
        "--model", type=str, required=True, help="model folder, repository on the Hub, or a CLIP (tiny, ViT-B-16 ...)"
    )
    parser.add_argument("--revision", type=str | None, help="branch, tag or commit of the repository")
    parser.add_argument("--pretrained", type=str | None, help="weights of a plain CLIP: openai, laion2b_s34b_b79k ...")
    parser.add_argument("--num_frames", type=int, default=8, help="frames per clip of a plain CLIP")
    parser.add_argument("--labels", nargs="+", type=str, help="class names; by default those of the model")
    parser.add_argument("--labels_file", type=Path | None, help="class names, one per line, or CSV with id,name")
    parser.add_argument("--templates", type=str | list[str] | None, help="prompt templates, or the name of a set")
    parser.add_argument("--top_k", type=int, default=5, help="number of classes to show")
    parser.add_argument("--views", type=int, default=1, help="clips per video, averaged")
    parser.add_argument("--timeline", action="store_true", help="also write scores over time, as JSON and PNG")
    parser.add_argument("--window", type=float, default=2.0, help="seconds per point of the timeline")
    parser.add_argument("--hop", type=float, default=1.0, help="seconds between points of the timeline")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/timeline"), help="folder for timelines")
    return parser


def separate(labels: list[str] | None, videos: list[str]) -> tuple[list[str] | None, list[str]]:
    """Split labels and videos in `--labels a b clip.mp4`. Without other videos, files at the end are videos."""
    if videos or labels is None:
        return labels, videos
    count = len(labels)
    while count and (labels[count - 1] == STDIN or Path(labels[count - 1]).exists()):
        count -= 1
    return (labels[:count] or None), labels[count:]


def report(name: str, predictor: Predictor, options: Any) -> None:
    """Print the predictions for one video, and write its timeline if requested."""
    from clipvid.data.reader import VideoError

    if Path(name).is_dir():
        raise VideoError(name, f"the folder has no video; expected one of {', '.join(SUFFIXES)}")
    source: Source = sys.stdin.buffer.read() if name == STDIN else name
    predictions = predictor(source, options.top_k)
    if sys.stdout.isatty():
        show_table(name, predictions)
    else:
        ascii_only = not (sys.stdout.encoding or "utf-8").lower().startswith("utf")
        print(json_text({"video": name, "predictions": predictions}, ascii_only=ascii_only), flush=True)
    if options.timeline:
        from clipvid.inference.timeline import write_timeline
        from clipvid.runs.progress import Remaining

        progress = Remaining("windows of the timeline")
        timeline = predictor.timeline(source, options.window, options.hop, progress)
        labels = predictor.model.labels
        written = write_timeline(options.output_dir, name, timeline, labels, options.window, options.hop, options.top_k)
        print(printable(", ".join(map(str, written))), file=sys.stderr)


def show_table(name: str, predictions: list[LabelScore]) -> None:
    """Print the predictions for one video as a table."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("class")
    table.add_column("score", justify="right")
    for prediction in predictions:
        table.add_row(escape(printable(prediction["label"])), f"{prediction['score']:.3f}")
    console = Console()
    console.out(printable(name), highlight=False)
    console.print(table)
