"""Resizing of frames without torch, equal to `clipvid.data.transforms.eval_transform` on the CPU to the bit.

PyTorch resizes bytes in whole numbers: the weights of a side are rounded to 16 bits, rows are resized before columns,
and each of the two steps rounds to bytes. This module repeats that arithmetic in numpy.

Shapes: H x W frame, S side of the result, K taps of a weighted sum.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from clipvid.data.preprocessing import Resize

_MOST_BITS = 22


@dataclass(frozen=True)
class _Filter:
    """Interpolation filter: its reach in cells, and its weight at a distance from its center."""

    reach: float
    weight: Callable[[np.ndarray], np.ndarray]


def _cubic(distance: np.ndarray) -> np.ndarray:
    x, a = np.abs(distance), -0.5
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _triangle(distance: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(distance), 0.0)


BICUBIC, BILINEAR = _Filter(2.0, _cubic), _Filter(1.0, _triangle)


def resize_frame(frame: np.ndarray, side: int, resize: Resize) -> np.ndarray:
    """Return a frame uint8 [H, W, 3] as the model takes it, uint8 [S, S, 3]; see `eval_transform` for `resize`."""
    height, width = frame.shape[:2]
    if resize == "squash":
        return resample(frame, side, side, BICUBIC)
    short, long = min(height, width), max(height, width)
    long = int(side * long / short)
    rows, columns = (side, long) if height <= width else (long, side)
    is_bilinear = resize == "bilinear_center"
    resized = resample(frame, rows, columns, BILINEAR if is_bilinear else BICUBIC)
    # As in torchvision's `CenterCrop`, a half is rounded to the even number.
    top, left = ((free // 2 if is_bilinear else round(free / 2)) for free in (rows - side, columns - side))
    return resized[top : top + side, left : left + side]


def resample(frame: np.ndarray, rows: int, columns: int, filter: _Filter) -> np.ndarray:
    """Return a frame uint8 [H, W, 3] of another size, smoothed where it becomes smaller."""
    if frame.shape[1] != columns:
        frame = _resample_axis(frame, 1, columns, filter)
    return frame if frame.shape[0] == rows else _resample_axis(frame, 0, rows, filter)


def _resample_axis(frame: np.ndarray, axis: int, length: int, filter: _Filter) -> np.ndarray:
    cells, weights, bits = _taps(frame.shape[axis], length, filter)
    shape = [1, 1, 1]
    shape[axis] = length
    total = np.full((*frame.shape[:axis], length, *frame.shape[axis + 1 :]), 1 << (bits - 1), dtype=np.int32)
    for own_cells, own_weights in zip(cells, weights, strict=True):
        total += frame.take(own_cells, axis) * own_weights.reshape(shape)
    return (total >> bits).clip(0, 255).astype(np.uint8)


@functools.lru_cache(64)
def _taps(old: int, new: int, filter: _Filter) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the cells [K, S] that each new cell reads, their weights int32 [K, S], and the bits after the point."""
    scale = old / new
    wide = max(scale, 1.0)
    reach = filter.reach * wide
    centers = scale * (np.arange(new) + 0.5)
    first = np.maximum((centers - reach + 0.5).astype(np.int64), 0)
    count = np.minimum((centers + reach + 0.5).astype(np.int64), old) - first
    taps = np.arange(count.max())[:, None]
    weights = filter.weight((taps + first - centers + 0.5) * (1 / wide))
    weights = np.where(taps < count, weights, 0.0)
    weights /= weights.cumsum(axis=0)[-1]
    bits = 0
    while bits < _MOST_BITS and int(0.5 + weights.max() * (1 << (bits + 1))) < 1 << 15:
        bits += 1
    scaled = weights * (1 << bits)
    whole = (scaled + np.copysign(0.5, scaled)).astype(np.int32)
    return np.minimum(taps + first, old - 1), whole, bits
