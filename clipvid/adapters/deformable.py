"""Bilinear sampling of a deformable k x k neighborhood, as indices and weights.

Sampling is linear: a sample is a weighted sum of the four cells around it. Operations on samples with many channels
therefore reduce to [N, N] matrices over cells. `gather_taps` and `scatter_taps` are the two directions.

Shapes: N = H x W cells, K = k * k taps in row-major order, 4 corners of a tap; leading axes `...` broadcast.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from clipvid import InputError


class Taps(NamedTuple):
    """Cells and weights that the taps of every cell read.

    Attributes:
        cells: [..., N, 4K] int64, cells at the corners. The corners of a tap are adjacent.
        weights: [..., N, 4K], bilinear weights, 0 for a corner outside the grid.
    """

    cells: Tensor
    weights: Tensor


def check_kernel_size(owner: str, kernel_size: int) -> None:
    """Check that the kernel has a middle tap."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise InputError(f"{owner}: kernel_size={kernel_size} must be odd and positive")


def place_taps(offsets: Tensor, grid: tuple[int, int], kernel_size: int) -> Taps:
    """Place the taps of every cell.

    Computed at least in float32, since half precision cannot resolve positions within a cell. The result is
    differentiable in the offsets. For a tap exactly on a cell, the derivative is the one towards growing coordinates.

    Args:
        offsets: [..., N, K, 2], (dy, dx) in cells from the tap's place in the regular k x k neighborhood.
        grid: (H, W).
        kernel_size: k.
    """
    positions = _regular_taps(offsets, grid, kernel_size) + offsets
    rows, row_weights = _corners(positions[..., 0], grid[0])
    columns, column_weights = _corners(positions[..., 1], grid[1])
    cells = rows.unsqueeze(-1) * grid[1] + columns.unsqueeze(-2)
    weights = row_weights.unsqueeze(-1) * column_weights.unsqueeze(-2)
    return Taps(cells.flatten(-3), weights.flatten(-3))


def gather_taps(matrix: Tensor, taps: Taps) -> Tensor:
    """Read each row of a matrix [..., N, N] at the taps of its cell, giving [..., N, K]."""
    cells = taps.cells.expand(*matrix.shape[:-1], -1)
    return (matrix.gather(-1, cells) * taps.weights).unflatten(-1, (-1, 4)).sum(-1)


def scatter_taps(values: Tensor, taps: Taps) -> Tensor:
    """Apply the transpose of `gather_taps`: [..., N, K] -> [..., N, N].

    The product of the result with values over cells sums up samples.
    """
    spread = values.repeat_interleave(4, dim=-1) * taps.weights
    matrix = spread.new_zeros(*values.shape[:-1], values.shape[-2])
    return matrix.scatter_add(-1, taps.cells.expand_as(spread), spread)


def _regular_taps(offsets: Tensor, grid: tuple[int, int], kernel_size: int) -> Tensor:
    """Return (y, x) of the undeformed taps, [N, K, 2]."""
    dtype = torch.promote_types(offsets.dtype, torch.float32)
    lengths = (*grid, kernel_size, kernel_size)
    rows, columns, tap_rows, tap_columns = torch.meshgrid(
        *(torch.arange(length, device=offsets.device, dtype=dtype) for length in lengths), indexing="ij"
    )
    middle = kernel_size // 2
    taps = torch.stack([rows + tap_rows - middle, columns + tap_columns - middle], dim=-1)
    return taps.flatten(2, 3).flatten(0, 1)


def _corners(positions: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Return indices and weights, both [..., 2], of the two cells around each position [...] along an axis."""
    positions = positions.clamp(-1, length)  # positions further out read zeros; infinity has no index
    low = positions.floor()
    part = positions - low
    cells = torch.stack([low, low + 1], dim=-1).long()
    inside = (cells >= 0) & (cells < length)
    return cells.clamp(0, length - 1), torch.stack([1 - part, part], dim=-1) * inside
