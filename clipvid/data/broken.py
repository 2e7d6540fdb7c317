"""Videos that cannot be read: said once, written down, counted, and past a limit the end of the run."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from clipvid import InputError

_SHOWN = 20
_FLOOR = 3  # one video of a small set is more than the usual share


class Failure(NamedTuple):
    """A video that could not be read: its path as the manifest has it, and a one-line reason."""

    path: str
    reason: str


class TooManyBadVideos(InputError):
    """More of the videos than the run allows cannot be read; the message lists them."""


@dataclass
class BadVideos:
    """What could not be read of one split.

    Each video is said once, in a line on standard error, and appended once to `file` as
    `{"split", "path", "reason"}`; several processes may share the file.

    Args:
        split: name of the split, for the record.
        total: videos in it.
        max_fraction: share of them that may be unreadable, 0 to 1; None for any. Unless it is 0, three videos may
            be, or a quarter of them if that is fewer.
        file: JSON lines; None for none.
    """

    split: str = "data"
    total: int = 0
    max_fraction: float | None = None
    file: Path | None = None
    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, failures: Iterable[Failure]) -> None:
        """Take up failures, those known already included.

        Raises TooManyBadVideos where a new one goes past the limit.
        """
        new = {path: reason for path, reason in failures if path not in self.reasons}
        if not new:
            return
        self.reasons |= new
        for path, reason in new.items():
            print(f"bad video in {self.split}: {path}: {reason}", file=sys.stderr, flush=True)
        self._write(new)
        if self.max_fraction is not None and len(self.reasons) > self._allowed(self.max_fraction):
            raise TooManyBadVideos(self._complaint(self.max_fraction))

    def _allowed(self, fraction: float) -> float:
        """Return the number of unreadable videos at which a run continues; a fraction of 0 allows none."""
        return max(fraction * self.total, min(_FLOOR, self.total // 4)) if fraction else 0

    def _write(self, new: dict[str, str]) -> None:
        if self.file is None:
            return
        text = self.file.read_text() if self.file.is_file() else ""
        written = set()
        for line in text.splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # cut off when the run was killed
                entry = json.loads(line)
                written.add((entry["split"], entry["path"]))
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as out:
            out.write("\n" if text and not text.endswith("\n") else "")
            for path, reason in new.items():
                if (self.split, path) not in written:
                    out.write(json.dumps({"split": self.split, "path": path, "reason": reason}) + "\n")

    def _complaint(self, limit: float) -> str:
        listed = [f"  {path}: {reason}" for path, reason in list(self.reasons.items())[:_SHOWN]]
        more = [f"  ... and {len(self.reasons) - _SHOWN} more"] if len(self.reasons) > _SHOWN else []
        return "\n".join(
            [
                f"{len(self.reasons)} of {self.total} videos in {self.split} cannot be read, more than "
                f"data.max_bad_fraction allows ({limit:g}):",
                *listed,
                *more,
                "Mend them, list the others (clipvid check-videos LIST --fix), or raise data.max_bad_fraction.",
            ]
        )
