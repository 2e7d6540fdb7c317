"""Page to try or teach a model in the browser: `clipvid app --model outputs/my_videos --index outputs/index`."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

from jsonargparse import ArgumentParser

from clipvid import InputError
from clipvid.commands.model_options import add_label_options, add_model_options
from clipvid.files import printable


def main(args: list[str] | None = None) -> None:
    """Run the verb. The page is served until Ctrl-C or SIGTERM."""
    options = build_parser().parse_args(args)
    if options.max_upload < 1:
        raise InputError(f"--max_upload {options.max_upload}: expected at least 1 MB")

    if options.teach is not None and same_place(options.model, options.output_dir):
        raise InputError(f"--output_dir {options.output_dir} is the folder of --model; choose another one")

    from clipvid.app.server import LOOPBACK, check_address, check_gradio, served, wait_for_signal

    check_gradio()
    check_address(options.host, options.port)

    from accelerate import PartialState

    from clipvid.app.shared_model import SharedModel
    from clipvid.app.teaching import opened_teacher
    from clipvid.hub.loading import load_model
    from clipvid.inference.search.index import Index

    index = None if options.index is None else Index(options.index)
    num_frames = options.num_frames if index is None else index.settings.num_frames
    model = load_model(
        options.model, options.pretrained, num_frames, options.labels, options.templates, options.revision
    )
    shared = SharedModel(model.to(PartialState().device), index, options.templates)
    with ExitStack() as stack:
        teacher = None
        if options.teach is not None:
            teacher = stack.enter_context(opened_teacher(shared, options.teach, options.output_dir))
        address = stack.enter_context(
            served(shared, options.model, options.host, options.port, options.max_upload, teacher)
        )
        if options.host not in LOOPBACK:
            print(f"clipvid app: everyone who reaches {options.host} can use the page", file=sys.stderr)
        print(printable(f"-> {address}  (Ctrl-C ends it)"), flush=True)
        wait_for_signal()


def same_place(model: str, output: Path) -> bool:
    """Return True if a model is a folder, and the output folder is the same one."""
    return Path(model).is_dir() and Path(model).resolve() == output.resolve()


def build_parser() -> ArgumentParser:
    """Build the parser of the verb."""
    parser = ArgumentParser(prog="clipvid app", description="Serve a page to try a model in the browser.")
    add_model_options(parser)
    add_label_options(parser)
    parser.add_argument("--index", type=Path | None, help="folder of an index of this model, to search")
    parser.add_argument("--teach", type=Path | None, help="folder of clips to label, to train a head on them")
    text = "folder of the labels and the trained model of --teach"
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/taught"), help=text)
    parser.add_argument("--host", type=str, default="127.0.0.1", help="address to listen at; 0.0.0.0 for all")
    parser.add_argument("--port", type=int, default=7860, help="port to listen at")
    parser.add_argument("--max_upload", type=int, default=200, help="largest upload in MB")
    return parser
