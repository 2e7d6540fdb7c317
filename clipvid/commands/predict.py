"""Classification of videos: `clipvid predict --model outputs/my_videos clip.mp4 folder/ 'more/**/*.avi'`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser

from clipvid import InputError
from clipvid.commands.model_options import add_label_options, add_model_options
from clipvid.files import printable
from clipvid.inference.exported.names import is_onnx
from clipvid.inference.video_names import STDIN, expand_names

if TYPE_CHECKING:
    from clipvid.data.reader import Source
    from clipvid.inference.exported.files import ExportedPredictor
    from clipvid.inference.many import FilePredictor
    from clipvid.inference.outputs import LabelScore, VideoPrediction
    from clipvid.inference.predictor import Predictor


def main(args: list[str] | None = None) -> None:
    """Run the verb. Exit with code 1 if a video cannot be read, after processing the others."""
    options = build_parser().parse_args(args)
    labels, videos = separate(options.labels, options.videos)
    if not videos:
        raise InputError("no video was given; expected files, folders, patterns, or - for standard input")
    if labels is not None and options.labels_file is not None:
        raise InputError("--labels and --labels_file exclude each other; use one")
    if not 0 < options.threshold <= 1:
        raise InputError(f"--threshold {options.threshold}: expected a probability above 0 and at most 1")
    for name, least in (("top_k", 1), ("batch_size", 1), ("num_workers", 0)):
        if getattr(options, name) < least:
            raise InputError(f"--{name} {getattr(options, name)}: expected at least {least}")

    if is_onnx(options.model):
        failures = predict_exported(options, labels, videos)
        sys.exit(1 if failures else 0)

    from clipvid.data.lists.classes import read_classes
    from clipvid.hub.loading import load_model
    from clipvid.inference.many import FilePredictor, start_processes
    from clipvid.inference.predictor import Predictor

    state = start_processes()
    if options.labels_file is not None:
        labels = [info.name for info in read_classes(options.labels_file).classes]
    model = load_model(
        options.model, options.pretrained, options.num_frames, labels, options.templates, options.revision
    )
    threshold = options.threshold if model.config.multi_label else None
    predictor = Predictor(model.to(state.device), options.views, threshold)

    def on_video(name: str, prediction: VideoPrediction) -> None:
        if options.timeline:
            write_scores_over_time(name, prediction.source, predictor, options)

    files = FilePredictor(predictor, options.top_k, options.batch_size, options.num_workers, on_video)
    if options.output is None and state.num_processes == 1:
        failures = show_each(files, expand_names(videos))
    else:
        failures = predict_together(files, videos, options)
    if failures:
        sys.exit(1)


def predict_exported(options: Any, labels: list[str] | None, videos: list[str]) -> int:
    """Predict with an ONNX file, without torch. Return the number of unreadable videos.

    Raises:
        InputError: An option needs a model that is not exported.
    """
    from clipvid.inference.exported.files import ExportedPredictor
    from clipvid.inference.exported.onnx_model import OnnxModel

    unused = {"--labels": labels, "--templates": options.templates, "--pretrained": options.pretrained}
    unused |= {
        "--num_frames": options.num_frames,
        "--revision": options.revision,
        "--timeline": options.timeline or None,
    }
    for option, value in unused.items():
        if value is not None:
            raise InputError(f"{option} does not work with an exported model ({options.model}); use the model folder")
    if options.views < 1:
        raise InputError(f"--views {options.views}: expected at least 1")
    counts = {name: getattr(options, name) for name in ("views", "top_k", "batch_size", "num_workers")}
    model = OnnxModel(options.model)
    threshold = options.threshold if model.record.multi_label else None
    files = ExportedPredictor(model, options.labels_file, threshold=threshold, **counts)
    if options.output is not None:
        return files.into_log(expand_names(videos), options.output)
    return show_each(files, expand_names(videos))


def show_each(files: FilePredictor | ExportedPredictor, names: Iterable[str]) -> int:
    """Print the predictions of each video as soon as they are known. Return the number of unreadable videos."""
    failures = 0
    for name, predictions in files.each(names):
        if predictions is None:
            failures += 1
        else:
            show(name, predictions)
    return failures


def predict_together(files: FilePredictor, videos: list[str], options: Any) -> int:
    """Share the videos out over the processes, and write or print the predictions in order."""
    import json

    from accelerate import PartialState

    from clipvid.inference.prediction_log import PredictionLog, model_hash

    log, state, model = None, PartialState(), files.predictor.model
    if options.output is not None:
        counts = {"num_frames": model.num_frames, "views": options.views, "top_k": options.top_k}
        settings = counts | {"model": model_hash(model), "labels": model.labels, "templates": list(model.templates)}
        if files.predictor.threshold is not None:
            settings["threshold"] = files.predictor.threshold
        log = PredictionLog(options.output, state.process_index, state.num_processes)
        log.check(settings)
    lines, failures = files.into_log(lambda: list(expand_names(videos)), log)
    for line in lines if state.is_main_process else []:
        show(json.loads(line)["video"], json.loads(line)["predictions"])
    return failures


def build_parser() -> ArgumentParser:
    """Build the parser of the verb."""
    parser = ArgumentParser(prog="clipvid predict", description="Classify videos: JSON lines, or a table on terminals.")
    parser.add_argument("videos", nargs="*", type=str, help="files, folders, patterns, or - for standard input")
    add_model_options(parser, exported=True)
    add_label_options(parser)
    parser.add_argument(
        "--labels_file", type=Path | None, help="class names, one per line, or CSV; text features for ONNX"
    )
    parser.add_argument("--top_k", type=int, default=5, help="number of classes to show")
    parser.add_argument("--views", type=int, default=1, help="clips per video, averaged")
    parser.add_argument("--batch_size", type=int, default=8, help="clips in one pass of the model")
    parser.add_argument("--num_workers", type=int, default=2, help="processes (ONNX: threads) that read several videos")
    parser.add_argument("--output", type=Path | None, help="file for the JSON lines; the same command continues it")
    parser.add_argument("--timeline", action="store_true", help="also write scores over time, and events")
    parser.add_argument("--window", type=float, default=2.0, help="seconds per point of the timeline")
    parser.add_argument("--hop", type=float, default=1.0, help="seconds between points of the timeline")
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.5,
        help="lowest probability of a class in an event, and in the list of a model with several labels per video",
    )
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


def show(name: str, predictions: list[LabelScore]) -> None:
    """Print the predictions for one video: a table on a terminal, a JSON line otherwise."""
    from clipvid.inference.outputs import prediction_line

    if sys.stdout.isatty():
        show_table(name, predictions)
    else:
        ascii_only = not (sys.stdout.encoding or "utf-8").lower().startswith("utf")
        print(prediction_line(name, predictions, ascii_only), flush=True)


def write_scores_over_time(name: str, source: Source, predictor: Predictor, options: Any) -> None:
    """Write the timeline of one video."""
    from clipvid.inference.timeline import write_timeline
    from clipvid.runs.progress import Remaining

    progress = Remaining("windows of the timeline")
    timeline = predictor.timeline(source, options.window, options.hop, progress)
    labels = predictor.model.labels
    written = write_timeline(
        options.output_dir, name, timeline, labels, options.window, options.hop, options.top_k, options.threshold
    )
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
