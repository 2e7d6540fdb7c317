"""`clipvid <verb>`: one module per verb, each with `main(args)`."""

from __future__ import annotations

import sys
from importlib import import_module

VERBS = {
    "finetune": "train a model on labelled video",
    "pretrain": "train without labels, or a small CLIP from scratch",
    "evaluate": "measure a model, zero-shot or fine-tuned",
    "convert": "bring in a checkpoint of a paper's authors",
    "benchmark": "what adapters cost in time, multiply-adds and memory",
    "demo": "the whole way on a synthetic world, with a report",
}


def main(args: list[str] | None = None) -> None:
    """Open the room that the first word names."""
    args = sys.argv[1:] if args is None else args
    if not args or args[0] not in VERBS:
        wanted = f"unknown verb {args[0]!r}\n" if args and not args[0].startswith("-") else ""
        lines = "\n".join(f"  {verb:10} {purpose}" for verb, purpose in VERBS.items())
        print(f"{wanted}usage: clipvid <verb> [options]\n\n{lines}\n\nclipvid <verb> --help shows the options")
        sys.exit(0 if args and args[0] in ("-h", "--help") else 2)
    run(args[0], args[1:])


def run(verb: str, args: list[str] | None = None) -> None:
    """Run one verb; expected failures end in one line and exit code 1, not in a traceback."""
    try:
        import_module(f"clipvid.commands.{verb}").main(args)
    except (ValueError, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and type(error) is not RuntimeError:
            raise
        print(f"clipvid {verb}: {error}", file=sys.stderr)
        sys.exit(1)
