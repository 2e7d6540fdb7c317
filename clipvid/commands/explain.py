"""Explanation of answers: `clipvid explain --model outputs/my_videos clip.mp4`.

Writes one page with where, when and how, and per video a strip of pictures, a video with overlays and the numbers.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from clipvid import InputError
from clipvid.commands.model_options import add_label_options, add_model_options
from clipvid.files import printable
from clipvid.inference.video_names import STDIN, SUFFIXES, expand_names
from clipvid.runs.yaml_files import check_yaml


def main(args: list[str] | None = None) -> None:
    """Run the verb. Exit with code 1 if a video cannot be read, after processing the others."""
    options = build_parser().parse_args(args)
    if not options.videos:
        raise InputError("no video was given; expected files, folders, patterns, or - for standard input")

    from accelerate import PartialState

    from clipvid.data.reader import VideoError
    from clipvid.hub.loading import load_model
    from clipvid.inference.explain.explanation import Explanation, explain
    from clipvid.inference.explain.methods import METHODS
    from clipvid.inference.explain.page import save_explanations

    method = read_method(options.method)
    METHODS.resolve(method)
    model = load_model(
        options.model, options.pretrained, options.num_frames, options.labels, options.templates, options.revision
    ).to(PartialState().device)
    explanations: list[Explanation] = []
    failures = 0
    for name in expand_names(options.videos):
        try:
            if Path(name).is_dir():
                raise VideoError(name, f"the folder has no video; expected one of {', '.join(SUFFIXES)}")
            source = sys.stdin.buffer.read() if name == STDIN else name
            chosen = (options.label, options.against, method, options.time, options.exact)
            explanations.append(explain(model, source, *chosen, name=name))
        except VideoError as error:
            failures += 1
            print(f"clipvid explain: {printable(error)}", file=sys.stderr)
        else:
            print(printable(f"{name}: {explanations[-1].sentence}"), flush=True)
    if explanations:
        report = save_explanations(options.output_dir, explanations)[0]
        print(printable(f"-> {report}"))
    if failures:
        sys.exit(1)


def read_method(text: str) -> Any:
    """Return a name as it is, and a mapping such as `{name: occlusion, size: 2}` as a dict."""
    if not text.startswith("{"):
        return text
    check_yaml(text, "--method")
    return yaml.safe_load(text)


def build_parser() -> ArgumentParser:
    """Build the parser of the verb."""
    parser = ArgumentParser(
        prog="clipvid explain", description="Show why a model gives its answer: where, when and how, as a page."
    )
    parser.add_argument("videos", nargs="*", type=str, help="files, folders, patterns, or - for standard input")
    add_model_options(parser)
    add_label_options(parser)
    parser.add_argument("--label", type=str | None, help="class to explain; by default the answer for each video")
    parser.add_argument("--against", type=str | None, help="class to compare with; by default all others")
    parser.add_argument(
        "--method",
        type=str,
        default="attention",
        help="attention, grad_cam, occlusion, rollout, or {name: ..., options}",
    )
    parser.add_argument("--time", type=bool, default=True, help="also measure the importance of frames and order")
    parser.add_argument("--exact", action="store_true", help="exact Shapley values of up to 8 frames; slow")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/explain"), help="folder for the files")
    return parser
