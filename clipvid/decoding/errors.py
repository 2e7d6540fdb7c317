"""Errors of videos, shared by all readers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from clipvid import InputError, RunError
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


def checked_indices(name: str, indices: Sequence[int] | Tensor, length: int) -> list[int]:
    """Return the indices as integers.

    Raises:
        InputError: There are no indices.
        IndexError: An index is outside [0, length).
    """
    numbers = [int(index) for index in indices]
    if not numbers:
        raise InputError(f"{name}: no frame indices given; expected at least one")
    for index in (min(numbers), max(numbers)):
        if not 0 <= index < length:
            raise IndexError(f"{name}: frame {index} is out of range for a video of {length} frames")
    return numbers


def read_frames_at(
    name: str,
    indices: Sequence[int] | Tensor,
    length: int,
    frames: Callable[[list[int]], Iterator[tuple[int, Tensor]]],
) -> Tensor:
    """Return the frames at `indices` (any order, repeats allowed) in one tensor; errors as `checked_indices`.

    Args:
        name: Name of the video in messages.
        indices: Numbers of frames.
        length: Number of frames of the video.
        frames: Returns numbers and frames uint8 [H, W, 3] at sorted numbers, in order.
    """
    numbers = checked_indices(name, indices, length)
    rows: dict[int, list[int]] = {}
    for row, number in enumerate(numbers):
        rows.setdefault(number, []).append(row)
    stacked: Tensor | None = None
    for number, frame in frames(sorted(rows)):
        if stacked is None:
            stacked = torch.empty((len(numbers), *frame.shape), dtype=frame.dtype, device=frame.device)
        stacked[rows[number]] = frame
    assert stacked is not None
    return stacked
