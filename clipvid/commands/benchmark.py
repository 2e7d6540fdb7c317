"""Benchmarks on this machine, `clipvid benchmark <subject>`, one module of `clipvid.benchmarks` each."""

from __future__ import annotations

import importlib
import sys

from clipvid import InputError
from clipvid.registry import suggest

SUBJECTS = (
    *("adapters", "cache", "data", "explain", "export", "inspect", "ladder"),
    *("peers", "predict", "pretraining", "search", "timeline", "tuning"),
)


def main(args: list[str] | None = None) -> None:
    """Run the verb. The first word is the subject.

    Raises:
        InputError: The subject is unknown.
    """
    subject, *options = (sys.argv[1:] if args is None else args) or [""]
    subjects = ", ".join(SUBJECTS)
    if subject in ("-h", "--help"):
        print(f"usage: clipvid benchmark <subject> [options]; subjects: {subjects}")
    elif subject in SUBJECTS:
        importlib.import_module(f"clipvid.benchmarks.{subject}").main(options)
    else:
        raise InputError(f"unknown subject {subject!r}{suggest(subject, SUBJECTS)}; expected one of {subjects}")
