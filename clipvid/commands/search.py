"""Search in an index: `clipvid search outputs/index "a ball moving left" --not "moving right"`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser

from clipvid import InputError
from clipvid.files import json_text, printable

if TYPE_CHECKING:
    from clipvid.inference.search.index import Index, Moment


def main(args: list[str] | None = None) -> None:
    """Run the verb."""
    options = build_parser().parse_args(args)
    exclude, like = options["not"] or [], options.like or []
    texts = [] if options.query is None else [options.query]

    from accelerate import PartialState

    from clipvid.inference.search.index import Index
    from clipvid.inference.search.page import write_search_page
    from clipvid.inference.search.query import Query

    Query(texts, exclude, like)  # refuses an empty one before the model is loaded
    index = Index(options.index)
    model = load_model_of(index, options).to(PartialState().device)
    moments = index.search(model, texts, exclude, like, options.top_k, options.approximate)
    if options.json:
        ascii_only = not (sys.stdout.encoding or "utf-8").lower().startswith("utf")
        for moment in moments:
            print(json_text(moment.record(), ascii_only=ascii_only), flush=True)
    else:
        show_table(moments)
    if options.html is not None:
        write_search_page(options.html, index, moments, describe(texts, exclude, like))
        print(printable(f"-> {options.html}"), file=sys.stderr)


def load_model_of(index: Index, options: Any) -> Any:
    """Load the model that `--model` names, by default that of the index.

    Raises:
        InputError: Neither names a model.
    """
    from clipvid.hub.loading import load_model

    settings = index.settings
    if options.model is not None:
        name, pretrained, revision = options.model, options.pretrained, options.revision
    elif settings.model is not None:
        name, pretrained, revision = settings.model, settings.pretrained, settings.revision
    else:
        raise InputError(f"{index.folder} was made by a model in memory; name its folder by --model")
    return load_model(name, pretrained, settings.num_frames, revision=revision)


def describe(texts: Sequence[str], exclude: Sequence[str], like: Sequence[str]) -> str:
    """Return a query in words."""
    parts = [*texts, *(f"like {name}" for name in like), *(f"not {text}" for text in exclude)]
    return ", ".join(parts)


def show_table(moments: Sequence[Moment]) -> None:
    """Print moments as a table."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from clipvid.inference.search.page import span

    table = Table()
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("time", no_wrap=True)
    table.add_column("video", overflow="fold")
    for moment in moments:
        table.add_row(f"{moment.score:.3f}", span(moment), escape(printable(moment.video)))
    Console().print(table)


def build_parser() -> ArgumentParser:
    """Build the parser of the verb."""
    parser = ArgumentParser(prog="clipvid search", description="Find moments in videos by text and by example.")
    parser.add_argument("index", type=Path, help="folder of the index, made by clipvid index")
    parser.add_argument("query", nargs="?", type=str, help="text to look for")
    parser.add_argument(
        "--not", action="append", type=str, help="leave out moments that fit this text better; may be repeated"
    )
    parser.add_argument("--like", action="append", type=str, help="example video; may be repeated")
    parser.add_argument("--top_k", type=int, default=10, help="largest number of moments")
    parser.add_argument("--json", action="store_true", help="print a JSON line for each moment")
    parser.add_argument("--html", type=Path | None, help="also write a page with thumbnails that play")
    parser.add_argument("--approximate", action="store_true", help="use the graph of clipvid index --graph")
    parser.add_argument("--model", type=str | None, help="model, by default the one that made the index")
    parser.add_argument("--revision", type=str | None, help="branch, tag or commit of the repository")
    parser.add_argument("--pretrained", type=str | None, help="weights of a plain CLIP")
    return parser
