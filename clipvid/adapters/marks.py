"""Marks that show over the frames of a clip what an adapter did.

Positions are (x, y) in shares of the picture's sides, from the top left. Shapes: T frames, H x W patches, K marks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True)
class HeatMap:
    """Values per patch and frame.

    Attributes:
        title: Name of the values.
        note: Explanation of how to read them.
        values: [T, H, W], at least 0.
    """

    title: str
    note: str
    values: Tensor


@dataclass(frozen=True)
class Points:
    """Points in frames.

    Attributes:
        title: Name of the points.
        note: Explanation of how to read them.
        frames: [K], frame of each point.
        positions: [K, 2].
        kinds: [K], index into `names` of each point.
        names: Names of the kinds of points, for the legend.
    """

    title: str
    note: str
    frames: Tensor
    positions: Tensor
    kinds: Tensor
    names: tuple[str, ...]


@dataclass(frozen=True)
class Tracks:
    """Paths through all frames.

    Attributes:
        title: Name of the paths.
        note: Explanation of how to read them.
        positions: [K, T, 2].
    """

    title: str
    note: str
    positions: Tensor


@dataclass(frozen=True)
class Arrows:
    """Arrows in frames.

    Attributes:
        title: Name of the arrows.
        note: Explanation of how to read them.
        frames: [K], frame of each arrow.
        starts: [K, 2].
        ends: [K, 2].
        weights: [K], at least 0; the heaviest are drawn strongest.
    """

    title: str
    note: str
    frames: Tensor
    starts: Tensor
    ends: Tensor
    weights: Tensor


@dataclass(frozen=True)
class FrameMatrix:
    """Weights between frames.

    Attributes:
        title: Name of the weights.
        note: Explanation of how to read them.
        values: [T, T], at least 0. Row t has the weights with which frame t reads the frames.
    """

    title: str
    note: str
    values: Tensor


Mark: TypeAlias = HeatMap | Points | Tracks | Arrows | FrameMatrix


def patch_centers(grid: tuple[int, int]) -> Tensor:
    """Return the center of each patch, [H * W, 2] in row-major order."""
    rows, columns = (torch.arange(length) for length in grid)
    y, x = torch.meshgrid((rows + 0.5) / grid[0], (columns + 0.5) / grid[1], indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)
