"""Decoded frames as tensors. The readers import this module when tensors are read, so that pictures need no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from clipvid import InputError


def as_tensors(pictures: Iterator[tuple[int, np.ndarray]]) -> Iterator[tuple[int, Tensor]]:
    """Yield numbers and pictures uint8 [H, W, 3] as tensors without copying."""
    for number, picture in pictures:
        yield number, torch.from_numpy(picture)


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
    stacked: np.ndarray | None = None  # torch copies with all threads, which takes longer than the copy itself
    for number, frame in frames(sorted(rows)):
        if stacked is None:
            stacked = np.empty((len(numbers), *frame.shape), dtype=np.uint8)
        for row in rows[number]:
            stacked[row] = frame.numpy()
    assert stacked is not None
    return torch.from_numpy(stacked)
