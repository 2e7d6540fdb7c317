"""GTA, Global Temporal Attention (He et al., BMVC 2021, https://arxiv.org/abs/2012.08510).

Known of the paper [abstract]: temporal attention on top of the spatial one, apart from it; its T x T matrix is learned
directly, randomly initialised and shared by all samples; it is applied to pixels and to semantically similar regions
found by a learned transformation, in a cross-channel multi-head fashion. Ours [construction]: everything that makes
this exact, namely the norm and the two linears, the place in the block, the default sizes, the regions as a softmax
assignment, the sum of the branches, prefix tokens as pixels like any other, and other frame counts by resampling.

Shapes: B clips, T frames, P prefix tokens, N = H x W patches, D width, G channel groups, R regions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipvid import InputError
from clipvid.adapters.base import Adapter, AdapterConfig, AdapterOutput, BlockInfo, split_prefix, zero_init
from clipvid.registry import check_option


@dataclass(frozen=True)
class GTAConfig(AdapterConfig):
    """Options of GTA.

    groups: channel groups G, one head each; divides the width.
    cross_channel: every group reads every group, through G x G temporal matrices; else itself alone, through G.
    regions: R of the region branch, at least 2; 0 leaves the branch out.
    normalize: what makes a temporal matrix of the learned numbers, `none` or `softmax` over the source frames.
    """

    groups: int = 8
    cross_channel: bool = True
    regions: int = 8
    normalize: Literal["none", "softmax"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option("gta", "cross_channel", self.cross_channel, (True, False))
        check_option("gta", "normalize", self.normalize, ("none", "softmax"))
        if self.groups < 1:
            raise InputError(f"gta: groups={self.groups} must be at least 1")
        if self.regions < 0 or self.regions == 1:
            raise InputError(f"gta: regions={self.regions} must be at least 2, or 0 for no region branch")


class TemporalMix(nn.Module):
    """Learned temporal matrices on values [B, T, M, D]: `y_g[t] = sum_h sum_s A_gh[t, s] v_h[s]` at each of M places.

    `matrices` is [G, G, T, T] (target group, source group, target frame, source frame), or [G, T, T] where groups
    do not cross, T the frames of training; it starts normal with a standard deviation of 1 / T.
    """

    def __init__(self, config: GTAConfig, num_frames: int):
        super().__init__()
        self.normalize = config.normalize
        groups = (config.groups, config.groups) if config.cross_channel else (config.groups,)
        self.matrices = nn.Parameter(torch.empty(*groups, num_frames, num_frames))
        nn.init.normal_(self.matrices, std=1 / num_frames)

    def matrices_for(self, num_frames: int) -> Tensor:
        """The matrices as clips of `num_frames` frames meet them: normalised, then resampled."""
        matrices = self.matrices.softmax(dim=-1) if self.normalize == "softmax" else self.matrices
        return resample_matrices(matrices, num_frames)

    def forward(self, values: Tensor) -> Tensor:
        matrices = self.matrices_for(values.shape[1])
        equation = "ghts,bsmhc->btmgc" if matrices.ndim == 4 else "gts,bsmgc->btmgc"
        return torch.einsum(equation, matrices, values.unflatten(-1, (matrices.shape[0], -1))).flatten(-2)


class RegionBranch(nn.Module):
    """Values pooled to R regions, mixed over time there, and handed back to the tokens by their shares."""

    def __init__(self, config: GTAConfig, width: int, num_frames: int):
        super().__init__()
        self.assign = nn.Linear(width, config.regions)
        self.mix = TemporalMix(config, num_frames)

    def forward(self, hidden: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """hidden, values [B, T, P+N, D] -> the branch [B, T, P+N, D] and every token's shares [B, T, P+N, R].

        A region is the mean of the values weighted with the shares P. Dividing P by its sum over tokens is a softmax
        of log P, which stays finite where no token of a frame has a share that half precision can hold.
        """
        log_shares = F.log_softmax(self.assign(hidden), dim=-1)
        shares = log_shares.exp()
        regions = log_shares.softmax(dim=2).transpose(2, 3).to(values.dtype) @ values
        return shares.to(values.dtype) @ self.mix(regions), shares


class GTA(Adapter):
    """One block's global temporal attention; runs with any number of frames, see `resample_matrices`.

    The trace holds `pixel_matrices` and, with a region branch, `region_matrices` as they were applied
    ([G, G, T, T] or [G, T, T]) and `regions`, the shares [B, T, P+N, R] of each token.
    """

    Config = GTAConfig
    papers = ("He et al., BMVC 2021, https://arxiv.org/abs/2012.08510",)
    place = "after_attention"

    def __init__(self, config: GTAConfig, block: BlockInfo):
        """Raises ValueError where the groups do not divide the block's width."""
        super().__init__(config, block)
        width = block.width
        if width % config.groups:
            raise InputError(
                f"gta: groups={config.groups} does not divide the tower's width {width}; choose a divisor of it"
            )
        self.norm = nn.LayerNorm(width)
        self.value = nn.Linear(width, width)
        self.pixels = TemporalMix(config, block.num_frames)
        self.regions = RegionBranch(config, width, block.num_frames) if config.regions else None
        self.out = zero_init(nn.Linear(width, width))

    def forward(self, tokens: Tensor, grid: tuple[int, int], trace: bool = False) -> AdapterOutput:
        split_prefix(tokens, grid)  # refuses a wrong grid; otherwise all tokens are pixels here
        num_frames = tokens.shape[1]
        hidden = self.norm(tokens)
        values = self.value(hidden)
        mixed = self.pixels(values)
        seen = {"pixel_matrices": self.pixels.matrices_for(num_frames).detach()} if trace else None
        if self.regions is not None:
            handed_back, shares = self.regions(hidden, values)
            mixed = mixed + handed_back
            if seen is not None:
                seen["region_matrices"] = self.regions.mix.matrices_for(num_frames).detach()
                seen["regions"] = shares.detach()
        return AdapterOutput(self.out(mixed), trace=seen)


def resample_matrices(matrices: Tensor, num_frames: int) -> Tensor:
    """Temporal matrices [..., T, T] for another number of frames T': [..., T', T'], bilinearly.

    A row of a new frame is interpolated between the trained rows, and what it gives to a trained source frame is
    divided among the new frames around that. So row sums are interpolated too: a longer clip, which sums more terms,
    gets no larger output, a still one the same at any length, and rows that sum to 1 (softmax) go on doing so.
    """
    trained = matrices.shape[-1]
    if num_frames == trained:
        return matrices
    weights = interpolation_weights(trained, num_frames, matrices)
    return weights @ matrices @ (weights / weights.sum(dim=0)).transpose(0, 1)


def interpolation_weights(old: int, new: int, like: Tensor) -> Tensor:
    """Weights [new, old] of linear interpolation along an axis, rows summing to 1; on the device, in the dtype of
    `like`. Cells are aligned, not end points; a shorter axis averages over all old cells around a new one."""
    exact = torch.promote_types(like.dtype, torch.float32)
    old_cells, new_cells = (torch.arange(length, device=like.device, dtype=exact) for length in (old, new))
    centres = (new_cells + 0.5) * (old / new) - 0.5
    weights = (1 - (centres[:, None] - old_cells).abs() / max(1.0, old / new)).clamp(min=0)
    return (weights / weights.sum(dim=1, keepdim=True)).to(like.dtype)
