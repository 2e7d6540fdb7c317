"""Relevance by occlusion (Zeiler and Fergus, ECCV 2014, https://arxiv.org/abs/1311.2901): slow, without gradients.

Shapes: T frames, H x W patches, S image side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clipvid import InputError
from clipvid.inference.explain.target import Target, logits_of
from clipvid.model.video_clip import VideoCLIP


@dataclass(frozen=True)
class Occlusion:
    """Loss of score when a patch of one frame is covered by the mean color of the frame, where positive.

    It needs T H W forward passes, fewer with larger patches.

    Attributes:
        size: Side of the covered square, in patches of the tower.
    """

    size: int = 1

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"occlusion: size={self.size} must be at least 1")

    def relevance(self, model: VideoCLIP, clip: Tensor, target: Target) -> Tensor:
        """Return the relevance [T, H, W] of a normalized clip [1, T, 3, S, S]."""
        rows, columns = model.encoder.tower.grid
        before = target.score(logits_of(model, clip))
        values = torch.zeros(clip.shape[1], rows, columns, device=clip.device)
        for frame in range(clip.shape[1]):
            for row in range(0, rows, self.size):
                places = [(row, column) for column in range(0, columns, self.size)]
                covered = torch.cat([cover(clip, (rows, columns), frame, *place, self.size) for place in places])
                drops = (before - target.score(logits_of(model, covered))).clamp(min=0)
                for (top, left), drop in zip(places, drops, strict=True):
                    values[frame, top : top + self.size, left : left + self.size] = drop
        return values


def cover(clip: Tensor, grid: tuple[int, int], frame: int, row: int, column: int, size: int = 1) -> Tensor:
    """Return a clip [1, T, 3, S, S] with `size` x `size` patches of a frame replaced by the frame's mean color."""
    covered = clip.clone()
    height, width = clip.shape[-2] // grid[0], clip.shape[-1] // grid[1]
    area = covered[:, frame, :, row * height : (row + size) * height, column * width : (column + size) * width]
    area.copy_(clip[:, frame].mean(dim=(-2, -1), keepdim=True).expand_as(area))
    return covered
