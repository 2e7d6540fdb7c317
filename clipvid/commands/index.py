"""Index of a folder of videos for `clipvid search`: `clipvid index videos --model outputs/my_videos`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser

from clipvid.commands.model_options import add_model_options
from clipvid.files import printable

if TYPE_CHECKING:
    from clipvid.data.reader import VideoError


def main(args: list[str] | None = None) -> None:
    """Run the verb. Exit with code 1 if a video cannot be read, after indexing the others."""
    options = build_parser().parse_args(args)

    from accelerate import PartialState

    from clipvid.hub.loading import load_model
    from clipvid.inference.search.building import build_index
    from clipvid.inference.search.settings import ModelSource

    model = load_model(options.model, options.pretrained, options.num_frames, revision=options.revision)
    failures = 0

    def on_error(error: VideoError) -> None:
        nonlocal failures
        failures += 1
        print(f"clipvid index: {printable(error)}", file=sys.stderr, flush=True)

    index = build_index(
        options.folder,
        model.to(PartialState().device),
        options.output,
        options.window,
        options.hop,
        options.num_workers,
        options.graph,
        ModelSource.create(options.model, options.pretrained, options.revision),
        on_error,
    )
    print(printable(f"{len(index)} windows of {len(index.videos)} videos -> {options.output}"))
    if failures:
        sys.exit(1)


def build_parser() -> ArgumentParser:
    """Build the parser of the verb."""
    parser = ArgumentParser(
        prog="clipvid index",
        description="Encode the windows of all videos in a folder. The same command updates the index.",
    )
    parser.add_argument("folder", type=Path, help="folder of the videos, with its subfolders")
    add_model_options(parser, "windows")
    parser.add_argument("--output", type=Path, default=Path("outputs/index"), help="folder of the index")
    parser.add_argument("--window", type=float, default=2.0, help="seconds per window")
    parser.add_argument("--hop", type=float, default=1.0, help="seconds between windows")
    parser.add_argument("--num_workers", type=int, default=2, help="reading processes")
    parser.add_argument("--graph", action="store_true", help="also write a graph for --approximate (usearch)")
    return parser
