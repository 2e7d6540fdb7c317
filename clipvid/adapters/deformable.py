"""Bilinear sampling of a k x k neighbourhood whose taps have moved, as indices and weights.

Sampling is linear: what a tap reads is a weighted sum of the four cells around it. So whatever is to be done with
samples of many channels can be done with [N, N] matrices over cells, of which `gather_taps` and `scatter_taps` are
the two directions.

Shapes: N = H x W cells, K = k * k taps in row-major order, 4 corners of a tap; leading axes `...` broadcast.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from clipvid import InputError


class Taps(NamedTuple):
    """Where the taps of every cell read.

    cells: [..., N, 4K] int64, the cells at the corners, corners of a tap side by side.
    weights: [..., N, 4K], bilinear; 0 for a corner outside of the grid.
    """

    cells: Tensor
    weights: Tensor


def check_kernel_size(owner: str, kernel_size: int) -> None:
    """Refuse a kernel without a middle tap."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise InputError(f"{owner}: kernel_size={kernel_size} must be odd and positive, for a tap to be in the middle")


def place_taps(offsets: Tensor, grid: tuple[int, int], kernel_size: int) -> Taps:
    """Offsets [..., N, K, 2], (dy, dx) in cells from a tap's place in the regular k x k neighbourhood -> `Taps`.

    In float32 at least: half precision cannot tell positions within a cell. Differentiable in the offsets; where a
    tap lies on a cell to the digit, the derivative is the one towards growing coordinates.
    """
    positions = _regular_taps(offsets, grid, kernel_size) + offsets
    rows, row_weights = _corners(positions[..., 0], grid[0])
    columns, column_weights = _corners(positions[..., 1], grid[1])
    cells = rows.unsqueeze(-1) * grid[1] + columns.unsqueeze(-2)
    weights = row_weights.unsqueeze(-1) * column_weights.unsqueeze(-2)
    return Taps(cells.flatten(-3), weights.flatten(-3))


def gather_taps(matrix: Tensor, taps: Taps) -> Tensor:
    """Each row of a matrix [..., N, N] read at that cell's taps -> [..., N, K]."""
    cells = taps.cells.expand(*matrix.shape[:-1], -1)
    return (matrix.gather(-1, cells) * taps.weights).unflatten(-1, (-1, 4)).sum(-1)


def scatter_taps(values: Tensor, taps: Taps) -> Tensor:
    """The transpose of `gather_taps`: [..., N, K] -> [..., N, N], with which a product over cells sums up samples."""
    spread = values.repeat_interleave(4, dim=-1) * taps.weights
    matrix = spread.new_zeros(*values.shape[:-1], values.shape[-2])
    return matrix.scatter_add(-1, taps.cells.expand_as(spread), spread)


def _regular_taps(offsets: Tensor, grid: tuple[int, int], kernel_size: int) -> Tensor:
    """(y, x) of the taps that have not moved, [N, K, 2]."""
    dtype = torch.promote_types(offsets.dtype, torch.float32)
    lengths = (*grid, kernel_size, kernel_size)
    rows, columns, tap_rows, tap_columns = torch.meshgrid(
        *(torch.arange(length, device=offsets.device, dtype=dtype) for length in lengths), indexing="ij"
    )
    middle = kernel_size // 2
    taps = torch.stack([rows + tap_rows - middle, columns + tap_columns - middle], dim=-1)
    return taps.flatten(2, 3).flatten(0, 1)


def _corners(positions: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The two cells around each position [...] along an axis: indices and weights, both [..., 2]."""
    positions = positions.clamp(-1, length)  # nothing is read further out, and infinity is no index
    low = positions.floor()
    part = positions - low
    cells = torch.stack([low, low + 1], dim=-1).long()
    inside = (cells >= 0) & (cells < length)
    return cells.clamp(0, length - 1), torch.stack([1 - part, part], dim=-1) * inside
