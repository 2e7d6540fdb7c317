"""Pretext task about motion: where the patches of a frame are in the next one.

Shapes: B clips, T frames, N = H x W patches, D tower width, E embedding, R reach, K = (2R + 1)^2 offsets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from clipvid import InputError
from clipvid.training.pretext import Losses, PretextTask, PretextTaskConfig, Seen, Sizes

_LEAST = 1e-3  # divergence below which the clips of a batch count as equally moved


@dataclass(frozen=True)
class TrackingConfig(PretextTaskConfig):
    """Options of tracking.

    Attributes:
        reach: Largest offset R of a patch between two frames, in patches.
        temperature: Divisor of the cosines of the teacher's patches.
    """

    reach: int = 2
    temperature: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reach < 1:
            raise InputError(f"reach={self.reach}: expected at least 1 patch")
        if self.temperature <= 0:
            raise InputError(f"temperature={self.temperature}: expected a positive number, such as 0.1")


class Tracking(PretextTask):
    """Motion of patches.

    The teacher's patches of a frame are searched in the next frame, at most R patches away. The head reads the
    student's feature of the frame, and predicts the share of patches at each offset. One frame does not tell in which
    direction it moves, so that the features must contain something of the next frame.

    The loss is the divergence of the prediction, relative to that of the mean of the batch. So it is 1 for a head that
    knows the mean only, and 0 for a perfect one.
    """

    Config = TrackingConfig
    whole = True
    only_reorders = True

    def __init__(self, config: TrackingConfig, sizes: Sizes):
        super().__init__(config, sizes)
        if sizes.num_frames < 2:
            raise InputError(f"tracking: expected at least 2 frames, got {sizes.num_frames}")
        self.offsets = nn.Sequential(
            nn.LayerNorm(sizes.embed_dim), nn.Linear(sizes.embed_dim, (2 * config.reach + 1) ** 2)
        )

    def change(self, frames: Tensor, generators: list[Generator]) -> tuple[Tensor, Tensor]:
        """Return the clips as they are, so that no other task changes their order, and no draw."""
        return frames, frames.new_zeros(())

    def forward(self, seen: Seen, drawn: Tensor | None) -> tuple[Losses, Losses]:
        """Return the loss of the offsets, and the share of the divergence that is explained."""
        actual = tracked_offsets(seen.teacher.patches, self.sizes.grid, self.config.reach, self.config.temperature)
        guess = self.offsets(seen.changed.frames[:, :-1]).log_softmax(dim=-1)
        mean = actual.mean(dim=(0, 1)).clamp(min=1e-6).log().expand_as(guess)
        unexplained = _divergence(actual, guess) / _divergence(actual, mean).clamp(min=_LEAST)
        return {"tracking": unexplained}, {"tracking_explained": 1 - unexplained.detach()}


def tracked_offsets(patches: Tensor, grid: tuple[int, int], reach: int, temperature: float) -> Tensor:
    """Return the share of patches [B, T, N, D] that move by each offset to the next frame, [B, T-1, K].

    Offsets are ordered by rows, from R patches up and left to R patches down and right.
    """
    patches = patches.float()
    features = F.normalize(patches - patches.mean(dim=(1, 2), keepdim=True), dim=-1).unflatten(2, grid)
    around = (0, 0, reach, reach, reach, reach)
    inside = F.pad(torch.ones_like(features[:1, :1, ..., :1], dtype=torch.bool), around, value=False)
    now, later = features[:, :-1], F.pad(features[:, 1:], around)
    scores = []
    for row in range(2 * reach + 1):
        for column in range(2 * reach + 1):
            window = slice(row, row + grid[0]), slice(column, column + grid[1])
            cosines = (now * later[:, :, *window]).sum(dim=-1)
            scores.append(cosines.masked_fill(~inside[:, :, *window, 0], float("-inf")))
    return (torch.stack(scores, dim=-1) / temperature).softmax(dim=-1).mean(dim=(2, 3))


def _divergence(actual: Tensor, guess: Tensor) -> Tensor:
    """Return the mean Kullback-Leibler divergence of logarithms of shares from shares, both [..., K]."""
    return F.kl_div(guess, actual, reduction="none").sum(dim=-1).mean()
