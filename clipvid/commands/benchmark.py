"""What things cost and reach on this machine: `clipvid benchmark <subject>`, a module of `clipvid.benchmarks` each."""

from __future__ import annotations

import importlib
import sys

from clipvid import InputError
from clipvid.registry import suggest

SUBJECTS = ("adapters", "cache", "data", "ladder", "pretraining", "tuning")


def main(args: list[str] | None = None) -> None:
    """The verb; its first word says what is measured.

    Raises:
        ValueError: no such subject.
    """
    subject, *options = (sys.argv[1:] if args is None else args) or [""]
    subjects = ", ".join(SUBJECTS)
    if subject in ("-h", "--help"):
        print(f"usage: clipvid benchmark <subject> [options], of the subjects {subjects}")
    elif subject in SUBJECTS:
        importlib.import_module(f"clipvid.benchmarks.{subject}").main(options)
    else:
        raise InputError(f"the first word {subject!r} is no subject{suggest(subject, SUBJECTS)}; known: {subjects}")
