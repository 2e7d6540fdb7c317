"""`clipvid <verb>`: one module per verb, each with `main(args)`."""

from __future__ import annotations

import sys
from importlib import import_module

from clipvid import ClipvidError
from clipvid.runs.preemption import EXIT_CODE, Preempted

VERBS = {
    "finetune": "train a model on labelled video",
    "pretrain": "train adapters on video without labels",
    "pretrain-clip": "train a small CLIP from scratch",
    "evaluate": "measure a model, zero-shot or fine-tuned",
    "predict": "say what videos show",
    "push": "upload a model folder to the Hugging Face Hub",
    "convert": "bring in a checkpoint of a paper's authors",
    "prepare": "turn a download of a public data set into manifests",
    "check-videos": "read every video of a list or folder, and say which cannot be",
    "benchmark": "what adapters reach and cost, and reading videos",
    "demo": "the whole way on a synthetic world, with a report",
}


def main(args: list[str] | None = None) -> None:
    """Open the room that the first word names."""
    args = sys.argv[1:] if args is None else args
    if not args or args[0] not in VERBS:
        wanted = f"unknown verb {args[0]!r}\n" if args and not args[0].startswith("-") else ""
        lines = "\n".join(f"  {verb:12} {purpose}" for verb, purpose in VERBS.items())
        print(f"{wanted}usage: clipvid <verb> [options]\n\n{lines}\n\nclipvid <verb> --help shows the options")
        sys.exit(0 if args and args[0] in ("-h", "--help") else 2)
    run(args[0], args[1:])


def run(verb: str, args: list[str] | None = None) -> None:
    """Run one verb; expected failures end in one line and exit code 1, not in a traceback, a signal in exit code 75."""
    try:
        import_module(f"clipvid.commands.{verb.replace('-', '_')}").main(args)
    except Preempted:
        print(f"clipvid {verb}: asked to end; the same command goes on from here", file=sys.stderr)
        sys.exit(EXIT_CODE)
    except (ClipvidError, ValueError, OSError) as error:
        print(f"clipvid {verb}: {error}", file=sys.stderr)
        sys.exit(1)
