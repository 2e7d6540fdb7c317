"""What do videos show: `clipvid predict --model outputs/my_videos clip.mp4 folder/ 'more/**/*.avi'`."""

from __future__ import annotations

import glob
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import PartialState
from jsonargparse import ArgumentParser
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clipvid import InputError
from clipvid.data.lists.classes import read_classes
from clipvid.data.reader import Source, VideoError
from clipvid.hub.loading import load_model
from clipvid.inference.predictor import Prediction, Predictor, Timeline

STDIN = "-"
SUFFIXES = (
    *(".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"),
    *(".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv"),
)


def main(args: list[str] | None = None) -> None:
    """The verb. Exit code 1 where a video could not be read; the others are done all the same."""
    options = build_parser().parse_args(args)
    labels, videos = separate(options.labels, options.videos)
    if not videos:
        raise InputError("no video was named: give files, folders, patterns, or - for standard input")
    if labels is not None and options.labels_file is not None:
        raise InputError("--labels and --labels_file exclude each other; give one")
    if options.top_k < 1:
        raise InputError(f"--top_k {options.top_k}: expected at least 1")
    if options.labels_file is not None:
        labels = [info.name for info in read_classes(options.labels_file).classes]
    model = load_model(
        options.model, options.pretrained, options.num_frames, labels, options.templates, options.revision
    )
    predictor = Predictor(model.to(PartialState().device), options.views)
    failures = 0
    for name in find_videos(videos):
        try:
            report(name, predictor, options)
        except VideoError as error:
            failures += 1
            print(f"clipvid predict: {error}", file=sys.stderr)
    if failures:
        sys.exit(1)


def build_parser() -> ArgumentParser:
    """The options of the verb."""
    parser = ArgumentParser(prog="clipvid predict", description="Say what videos show: JSON lines, or a table.")
    parser.add_argument("videos", nargs="*", type=str, help="files, folders, patterns, or - for standard input")
    parser.add_argument(
        "--model", type=str, required=True, help="model folder, repository on the Hub, or a CLIP (tiny, ViT-B-16 ...)"
    )
    parser.add_argument("--revision", type=str | None, help="branch, tag or commit of the repository")
    parser.add_argument("--pretrained", type=str | None, help="weights of a plain CLIP: openai, laion2b_s34b_b79k ...")
    parser.add_argument("--num_frames", type=int, default=8, help="frames per clip of a plain CLIP")
    parser.add_argument("--labels", nargs="+", type=str, help="class names; those of the model where left out")
    parser.add_argument("--labels_file", type=Path | None, help="class names, one per line, or CSV with id,name")
    parser.add_argument("--templates", type=str | list[str] | None, help="prompt templates, or a set of them by name")
    parser.add_argument("--top_k", type=int, default=5, help="classes shown")
    parser.add_argument("--views", type=int, default=1, help="clips per video, averaged")
    parser.add_argument("--timeline", action="store_true", help="scores over time too, as JSON and PNG")
    parser.add_argument("--window", type=float, default=2.0, help="seconds that a point of the timeline sees")
    parser.add_argument("--hop", type=float, default=1.0, help="seconds between points of the timeline")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/timeline"), help="where timelines go")
    return parser


def separate(labels: list[str] | None, videos: list[str]) -> tuple[list[str] | None, list[str]]:
    """`--labels a b clip.mp4` takes the video for a label: with no other video, files at its end are the videos."""
    if videos or labels is None:
        return labels, videos
    count = len(labels)
    while count and (labels[count - 1] == STDIN or Path(labels[count - 1]).exists()):
        count -= 1
    return (labels[:count] or None), labels[count:]


def find_videos(words: list[str]) -> Iterator[str]:
    """Names of videos: files as they are, all videos in folders, what patterns match, and `-`."""
    for word in words:
        if Path(word).is_dir():
            files = [path for path in Path(word).rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
            yield from map(str, sorted(files)) if files else [word]
        elif word == STDIN or Path(word).exists() or not glob.has_magic(word):
            yield word
        else:
            matches = sorted(glob.glob(word, recursive=True))
            yield from find_videos(matches) if matches else [word]


def report(name: str, predictor: Predictor, options: Any) -> None:
    """Print the predictions for one video, and write its timeline where that is asked for."""
    if Path(name).is_dir():
        raise VideoError(name, f"there is no video in this folder; looked for {', '.join(SUFFIXES)}")
    source: Source = sys.stdin.buffer.read() if name == STDIN else name
    predictions = predictor(source, options.top_k)
    if sys.stdout.isatty():
        show_table(name, predictions)
    else:
        print(json.dumps({"video": name, "predictions": predictions}), flush=True)
    if options.timeline:
        timeline = predictor.timeline(source, options.window, options.hop)
        write_timeline(name, timeline, predictor.model.labels, options)


def show_table(name: str, predictions: list[Prediction]) -> None:
    """One video's predictions, for people."""
    table = Table("class")
    table.add_column("score", justify="right")
    for prediction in predictions:
        table.add_row(escape(prediction["label"]), f"{prediction['score']:.3f}")
    console = Console()
    console.out(name, highlight=False)
    console.print(table)


def write_timeline(name: str, timeline: Timeline, labels: list[str], options: Any) -> None:
    """`<name>.json` with the scores of all classes over time, and `<name>.png` with the curves of the top ones."""
    folder: Path = options.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    stem = "stdin" if name == STDIN else "_".join(part for part in Path(name).parts if part not in ("/", ".", ".."))
    record = {
        "video": name,
        "window": options.window,
        "hop": options.hop,
        "labels": labels,
        "times": timeline.times,
        "scores": timeline.scores.tolist(),
    }
    (folder / f"{stem}.json").write_text(json.dumps(record) + "\n")
    best = timeline.scores.amax(dim=0).topk(min(options.top_k, len(labels))).indices.tolist()
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots()
    for index in best:
        axes.plot(timeline.times, timeline.scores[:, index], marker=".", label=labels[index])
    axes.set(xlabel="seconds", ylabel="probability", ylim=(0, 1), title=name)
    axes.legend(loc="upper right")
    figure.savefig(folder / f"{stem}.png", dpi=100)
    print(f"{folder / stem}.json, {folder / stem}.png", file=sys.stderr)
