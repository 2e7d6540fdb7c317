"""What goes wrong with videos, as every reader says it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from clipvid import InputError, RunError


class VideoError(RunError):
    """A video that cannot be read: `path` (a description for bytes and file objects) and a one-line `reason`.

    A DataLoader raises it again in the parent process from one formatted message, hence the optional reason.
    """

    def __init__(self, path: str, reason: str | None = None) -> None:
        super().__init__(path if reason is None else f"{path}: {reason}")
        self.path, self.reason = path, reason

    def __reduce__(self) -> tuple[type, tuple[str, str | None]]:
        return type(self), (self.path, self.reason)


def checked_indices(name: str, indices: Sequence[int] | Tensor, length: int) -> list[int]:
    """The indices as integers; ValueError for none, IndexError for one outside of [0, length)."""
    wanted = [int(index) for index in indices]
    if not wanted:
        raise InputError(f"{name}: no frame indices given; expected at least one")
    for index in (min(wanted), max(wanted)):
        if not 0 <= index < length:
            raise IndexError(f"{name}: frame {index} asked of a video of {length} frames")
    return wanted
