"""Handling of unreadable videos. Each one is logged once, and the run stops past a limit."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from clipvid import InputError
from clipvid.files import cut, json_text, printable

_SHOWN = 20
_LETTERS = 500  # of a path or a reason in messages
_FLOOR = 3  # in small sets, one video already exceeds the usual share


class Failure(NamedTuple):
    """Video that could not be read: its path in the manifest and a one-line reason."""

    path: str
    reason: str


class TooManyBadVideos(InputError):
    """Error for more unreadable videos than allowed. The message lists them."""


@dataclass
class BadVideos:
    """Unreadable videos of one split.

    Each video is logged once to standard error and appended once to `file` as `{"split", "path", "reason"}`. Several
    processes may share the file.

    Args:
        split: Name of the split in log lines.
        total: Number of videos in the split.
        max_fraction: Allowed share of unreadable videos, 0 to 1, or None for any. Unless it is 0, three videos are
            allowed, or a quarter of them if that is fewer.
        file: JSON lines file, or None.
    """

    split: str = "data"
    total: int = 0
    max_fraction: float | None = None
    file: Path | None = None
    reasons: dict[str, str] = field(default_factory=dict)
    _unwritten: dict[str, str] = field(default_factory=dict)

    def foresee(self, failures: Iterable[Failure], quiet: bool = False) -> None:
        """Take up failures without writing them to the file, which `write` does later.

        Args:
            failures: found before the run.
            quiet: print and write nothing, which another process does.

        Raises:
            TooManyBadVideos: they are more than the run allows.
        """
        new = {path: reason for path, reason in failures if path not in self.reasons}
        self.reasons |= new
        if not quiet:
            self._unwritten |= new
            self._print(new)
        self._check()

    def write(self) -> None:
        """Write the failures that were foreseen to the file."""
        self._write(self._unwritten)
        self._unwritten = {}

    def add(self, failures: Iterable[Failure]) -> None:
        """Add failures. Known ones are ignored.

        Raises:
            TooManyBadVideos: A new failure exceeds the limit.
        """
        new = {path: reason for path, reason in failures if path not in self.reasons}
        if not new:
            return
        self.reasons |= new
        self._print(new)
        self._write(new)
        self._check()

    def _print(self, new: dict[str, str]) -> None:
        for path, reason in new.items():
            print(f"bad video in {self.split}: {_shown(path)}: {_shown(reason)}", file=sys.stderr, flush=True)

    def _check(self) -> None:
        if self.max_fraction is not None and len(self.reasons) > self._allowed(self.max_fraction):
            raise TooManyBadVideos(self._complaint(self.max_fraction))

    def _allowed(self, fraction: float) -> float:
        """Return the allowed number of unreadable videos. A fraction of 0 allows none."""
        return max(fraction * self.total, min(_FLOOR, self.total // 4)) if fraction else 0

    def _write(self, new: dict[str, str]) -> None:
        if self.file is None or not new:
            return
        text = self.file.read_text(encoding="utf-8") if self.file.is_file() else ""
        written = set()
        for line in text.splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # line cut off by a killed run
                entry = json.loads(line)
                written.add((entry["split"], entry["path"]))
        self.file.parent.mkdir(parents=True, exist_ok=True)
        # A name that is not UTF-8 becomes an escape of JSON.
        with self.file.open("a", encoding="utf-8", errors="backslashreplace") as out:
            out.write("\n" if text and not text.endswith("\n") else "")
            for path, reason in new.items():
                if (self.split, path) not in written:
                    entry = {"split": self.split, "path": path, "reason": reason}
                    out.write(json_text(entry) + "\n")

    def _complaint(self, limit: float) -> str:
        listed = [f"  {_shown(path)}: {_shown(reason)}" for path, reason in list(self.reasons.items())[:_SHOWN]]
        more = [f"  ... and {len(self.reasons) - _SHOWN} more"] if len(self.reasons) > _SHOWN else []
        return "\n".join(
            [
                f"{len(self.reasons)} of {self.total} videos in {self.split} cannot be read, more than "
                f"data.max_bad_fraction allows ({limit:g}):",
                *listed,
                *more,
                "Repair them, remove them from the list (clipvid check-videos LIST --fix true), or raise "
                "data.max_bad_fraction.",
            ]
        )


def _shown(text: str) -> str:
    return cut(printable(text), _LETTERS)
