"""GTA, Global Temporal Attention (He et al., BMVC 2021, https://arxiv.org/abs/2012.08510).

Known from the paper [abstract]: temporal attention is decoupled from spatial attention and follows it. Its T x T matrix
is learned directly, initialized at random and shared by all samples. It applies to pixels and, after a learned
transformation, to semantically similar regions, in a cross-channel multi-head fashion. Our choice [construction]: the
norm and the two linears, the place in the block, and the default sizes. The same holds for regions as a softmax
assignment, the sum of the branches, prefix tokens treated as pixels, and resampling for other frame counts.

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
from clipvid.adapters.marks import FrameMatrix, Mark
from clipvid.layers.sizes import has_length
from clipvid.registry import check_option


@dataclass(frozen=True)
class GTAConfig(AdapterConfig):
    """Options of GTA.

    Attributes:
        groups: Number of channel groups G, one head each. Must divide the width.
        cross_channel: If True, every group reads every group through G x G temporal matrices. Otherwise it reads only
            itself, through G matrices.
        regions: Number of regions R, at least 2. 0 disables the region branch.
        normalize: Normalization of the temporal matrices, `none` or `softmax` over the source frames.
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
            raise InputError(f"gta: regions={self.regions} must be at least 2, or 0 to disable the region branch")


class TemporalMix(nn.Module):
    """Learned temporal matrices on values [B, T, M, D], `y_g[t] = sum_h sum_s A_gh[t, s] v_h[s]` at each of M places.

    `matrices` is [G, G, T, T] (target group, source group, target frame, source frame), or [G, T, T] without
    `cross_channel`. T is the number of frames in training. The initial values are normal with a standard deviation of 1
    / T.
    """

    def __init__(self, config: GTAConfig, num_frames: int):
        super().__init__()
        self.normalize = config.normalize
        groups = (config.groups, config.groups) if config.cross_channel else (config.groups,)
        self.matrices = nn.Parameter(torch.empty(*groups, num_frames, num_frames))
        nn.init.normal_(self.matrices, std=1 / num_frames)

    def matrices_for(self, num_frames: int) -> Tensor:
        """Return the matrices for clips of `num_frames` frames, normalized and then resampled."""
        matrices = self.matrices.softmax(dim=-1) if self.normalize == "softmax" else self.matrices
        return resample_matrices(matrices, num_frames)

    def forward(self, values: Tensor) -> Tensor:
        """Mix values [B, T, M, D] over time."""
        matrices = self.matrices_for(values.shape[1])
        equation = "ghts,bsmhc->btmgc" if matrices.ndim == 4 else "gts,bsmgc->btmgc"
        return torch.einsum(equation, matrices, values.unflatten(-1, (matrices.shape[0], -1))).flatten(-2)


class RegionBranch(nn.Module):
    """Values pooled to R regions, mixed over time, and distributed back to the tokens by their shares."""

    def __init__(self, config: GTAConfig, width: int, num_frames: int):
        super().__init__()
        self.assign = nn.Linear(width, config.regions)
        self.mix = TemporalMix(config, num_frames)

    def forward(self, hidden: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the branch [B, T, P+N, D] and the shares of every token [B, T, P+N, R].

        A region is the mean of the values weighted by the shares. Dividing the shares by their sum over tokens equals a
        softmax of their logarithm. The softmax stays finite when all shares in a frame underflow in half precision.

        Args:
            hidden: [B, T, P+N, D], tokens that define the shares.
            values: [B, T, P+N, D], values to pool.
        """
        log_shares = F.log_softmax(self.assign(hidden), dim=-1)
        shares = log_shares.exp()
        regions = log_shares.softmax(dim=2).transpose(2, 3).to(values.dtype) @ values
        return shares.to(values.dtype) @ self.mix(regions), shares


class GTA(Adapter):
    """Global temporal attention of one block, for any number of frames (see `resample_matrices`).

    The trace holds `pixel_matrices` and, with a region branch, `region_matrices` as applied ([G, G, T, T] or [G, T,
    T]). It also holds `regions`, the shares [B, T, P+N, R] of each token.
    """

    Config = GTAConfig
    papers = ("He et al., BMVC 2021, https://arxiv.org/abs/2012.08510",)
    place = "after_attention"

    def __init__(self, config: GTAConfig, block: BlockInfo):
        """Build the layers.

        Raises:
            InputError: The groups do not divide the block's width.
        """
        super().__init__(config, block)
        width = block.width
        if width % config.groups:
            raise InputError(
                f"gta: groups={config.groups} does not divide the tower's width {width}; choose a divisor of the width"
            )
        self.norm = nn.LayerNorm(width)
        self.value = nn.Linear(width, width)
        self.pixels = TemporalMix(config, block.num_frames)
        self.regions = RegionBranch(config, width, block.num_frames) if config.regions else None
        self.out = zero_init(nn.Linear(width, width))

    def forward(self, tokens: Tensor, grid: tuple[int, int], trace: bool = False) -> AdapterOutput:
        """Return the update of the tokens; see `Adapter.forward`."""
        split_prefix(tokens, grid)  # checks the grid; all tokens are treated as pixels
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

    def draw_trace(self, trace: dict[str, Tensor], grid: tuple[int, int]) -> list[Mark]:
        """Return the temporal matrices as mean sizes over channel groups; see `Adapter.draw_trace`."""
        note = "Size of the weights with which a frame (row) reads the frames (columns), averaged over channel groups."
        names = {"pixel_matrices": "matrix of pixels", "region_matrices": "matrix of regions"}
        shown = [(title, trace[name]) for name, title in names.items() if name in trace]
        return [FrameMatrix(title, note, value.float().abs().flatten(0, -3).mean(dim=0)) for title, value in shown]


def resample_matrices(matrices: Tensor, num_frames: int) -> Tensor:
    """Resample temporal matrices [..., T, T] bilinearly to another number of frames T', giving [..., T', T'].

    Rows of new frames are interpolated between trained rows. The weight of a trained source frame is divided among the
    new frames around it. Row sums are therefore interpolated too: a longer clip, which sums more terms, gets no larger
    output. A still clip gets the same output at any length, and rows that sum to 1 (softmax) still do.
    """
    trained = matrices.shape[-1]
    if has_length(num_frames, trained):
        return matrices
    weights = interpolation_weights(trained, num_frames, matrices)
    return weights @ matrices @ (weights / weights.sum(dim=0)).transpose(0, 1)


def interpolation_weights(old: int, new: int, like: Tensor) -> Tensor:
    """Return weights [new, old] of linear interpolation along an axis, with rows that sum to 1.

    Cells are aligned, not end points. A shorter axis averages over all old cells around a new one. Device and dtype are
    those of `like`.
    """
    exact = torch.promote_types(like.dtype, torch.float32)
    old_cells, new_cells = (torch.arange(length, device=like.device, dtype=exact) for length in (old, new))
    ratio = old / (new_cells[-1] + 1)  # a tensor, since the new length can be free in an exported graph
    centres = (new_cells + 0.5) * ratio - 0.5
    weights = (1 - (centres[:, None] - old_cells).abs() / ratio.clamp(min=1)).clamp(min=0)
    return (weights / weights.sum(dim=1, keepdim=True)).to(like.dtype)
