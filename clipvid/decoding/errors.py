"""Errors of videos, shared by all readers."""

from __future__ import annotations

from clipvid import RunError
from clipvid.files import cut, printable

_SHOWN = 500  # letters of a path or a reason in messages


class VideoError(RunError):
    """Error for a video that cannot be read.

    A DataLoader raises the error again in the parent process from one formatted message, so the reason is optional.

    Attributes:
        path: Path, or a description for bytes and file objects.
        reason: Reason in one line.
    """

    def __init__(self, path: str, reason: str | None = None) -> None:
        message = path if reason is None else f"{cut(printable(path), _SHOWN)}: {cut(printable(reason), _SHOWN)}"
        super().__init__(message)
        self.path, self.reason = path, reason

    def __reduce__(self) -> tuple[type, tuple[str, str | None]]:
        return type(self), (self.path, self.reason)
