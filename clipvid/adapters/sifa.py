"""SIFA, Stand-alone Inter-Frame Attention (Long et al., CVPR 2022, https://arxiv.org/abs/2206.06931).

Every location of a frame queries a deformable k x k neighbourhood in the next frame; where the taps lie is predicted
from the motion between the two. Features are their own queries, keys and values.

Known from the authors' code: the operator (`motion_feature`, offsets, `correlate`, `aggregate`, the shift by one
frame), its place after the attention residual, and the LayerNorm that starts at zero. Known from the paper: offsets
from the motion feature (75.4) beat those from the plain difference (75.0) and none (74.6). The paper's motion feature
lacks the `+ x`; we follow the code. The authors' Swin has the offsets switched off: `deformable: false`.
Chosen here: offsets on, from a convolution that starts at zero; prefix tokens left alone; softmax and projections as
options; samples never formed, since bilinear sampling is linear and two products with [N, N] matrices do the same.

Shapes: B clips, T frames, P prefix tokens, N = H x W patches, D width (C channels), K = k * k taps in row-major order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from clipvid import InputError
from clipvid.adapters.base import Adapter, AdapterConfig, AdapterOutput, BlockInfo, split_prefix, zero_init
from clipvid.adapters.deformable import Taps, check_kernel_size, gather_taps, place_taps, scatter_taps
from clipvid.registry import check_option

NORMALIZE = (None, "softmax")
MOTIONS = ("feature", "difference")


@dataclass(frozen=True)
class SIFAConfig(AdapterConfig):
    """Options of SIFA.

    kernel_size: k, odd; the authors' 3.
    deformable: whether taps move. Without it, the authors' Swin: taps in their regular places.
    motion: what the offsets are predicted from, `feature` (the authors') or the plain `difference` of the frames.
    normalize: `softmax` over the k * k taps (those outside of the grid, of correlation 0, included), or None.
    projected: queries, keys and values through a linear map each, which start as the identity.
    """

    kernel_size: int = 3
    deformable: bool = True
    motion: Literal["feature", "difference"] = "feature"
    normalize: Literal["softmax"] | None = None
    projected: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_kernel_size("sifa", self.kernel_size)
        check_option("sifa", "motion", self.motion, MOTIONS)
        check_option("sifa", "normalize", self.normalize, NORMALIZE)


class ZeroLayerNorm(nn.LayerNorm):
    """LayerNorm whose weight and bias start at zero; computes in the dtype of its input."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class SIFA(Adapter):
    """One block's inter-frame attention, `LN0(SIFA(x))` on patches; the update of prefix tokens is zero.

    The trace of T frames holds T-1 pairs, pair t being frames t and t+1: `offsets` [B, T-1, N, K, 2], (dy, dx) in
    patches, and `correlation` [B, T-1, N, K] of frame t's patches with what the taps read in frame t+1, before any
    softmax.
    """

    Config = SIFAConfig
    papers = ("Long et al., CVPR 2022, https://arxiv.org/abs/2206.06931",)
    place = "after_attention"

    def __init__(self, config: SIFAConfig, block: BlockInfo):
        super().__init__(config, block)
        width, taps = block.width, config.kernel_size**2
        self.offset_conv: nn.Conv2d | None = None
        if config.deformable:
            self.offset_conv = zero_init(nn.Conv2d(width, 2 * taps, 3, padding=1, bias=False))
        self.q, self.k, self.v = (identity_linear(width) if config.projected else nn.Identity() for _ in range(3))
        self.norm = ZeroLayerNorm(width)

    def forward(self, tokens: Tensor, grid: tuple[int, int], trace: bool = False) -> AdapterOutput:
        prefix, patches = split_prefix(tokens, grid)
        frames, following = patches[:, :-1], patches[:, 1:]
        offsets = self.predict_offsets(frames, following, grid)
        taps = place_taps(offsets, grid, self.config.kernel_size)
        correlation = correlate(self.q(frames), self.k(following), taps)
        aggregated = aggregate(normalized(correlation, self.config.normalize), self.v(following), taps)
        update = self.norm(append_empty_frame(aggregated)).to(tokens.dtype)
        update = torch.cat([torch.zeros_like(prefix), update], dim=2)
        if not trace:
            return AdapterOutput(update)
        seen = {"offsets": offsets.expand(*correlation.shape, 2), "correlation": correlation}
        return AdapterOutput(update, trace={name: value.detach() for name, value in seen.items()})

    def predict_offsets(self, frames: Tensor, following: Tensor, grid: tuple[int, int]) -> Tensor:
        """Patches [B, T-1, N, D] of both frames of a pair -> offsets [B, T-1, N, K, 2], (dy, dx) in patches.

        Zeros, of the shape [1, 1, N, K, 2], where the taps do not move.
        """
        num_taps = self.config.kernel_size**2
        if self.offset_conv is None:
            return frames.new_zeros(1, 1, frames.shape[2], num_taps, 2)
        motion = motion_feature(frames, following) if self.config.motion == "feature" else following - frames
        maps = rearrange(motion, "b p (h w) d -> (b p) d h w", h=grid[0])
        offsets = self.offset_conv(maps).unflatten(0, frames.shape[:2])
        return rearrange(offsets, "b p (k yx) h w -> b p (h w) k yx", k=num_taps)


def inter_frame_attention(
    x: Tensor, offsets: Tensor, kernel_size: int = 3, normalize: Literal["softmax"] | None = None
) -> Tensor:
    """The SIFA operator: at frame t, what frame t's features find in frame t+1; zero at the last frame.

    Holds matrices of (HW)^2 per pair of frames: for grids up to about 32 x 32.

    Args:
        x: [N, C, T, H, W], N clips.
        offsets: [N, 2 * k * k, T, H, W] in cells, of taps read in frame t (those of frame 0 serve nothing); (dy, dx)
            per tap, taps row-major.
        kernel_size: k, odd.
        normalize: `softmax` over taps or None.

    Returns:
        [N, C, T, H, W] in x's dtype. It is cubic in x: float16 holds it for features up to about 20.

    Raises:
        ValueError: a kernel size that is even, another `normalize`, or offsets of another shape.
    """
    check_kernel_size("inter_frame_attention", kernel_size)
    check_option("inter_frame_attention", "normalize", normalize, NORMALIZE)
    expected = (x.shape[0], 2 * kernel_size**2, *x.shape[2:])
    if x.ndim != 5 or offsets.shape != expected:
        raise InputError(
            f"inter_frame_attention: x [N, C, T, H, W] and offsets [N, 2 * {kernel_size} * {kernel_size}, T, H, W] "
            f"expected, got {tuple(x.shape)} and {tuple(offsets.shape)}"
        )
    height, width = x.shape[3:]
    frames = rearrange(x, "n c t h w -> n t (h w) c")
    offsets = rearrange(offsets[:, :, 1:], "n (k yx) t h w -> n t (h w) k yx", yx=2)
    taps = place_taps(offsets, (height, width), kernel_size)
    correlation = correlate(frames[:, :-1], frames[:, 1:], taps)
    aggregated = aggregate(normalized(correlation, normalize), frames[:, 1:], taps)
    return rearrange(append_empty_frame(aggregated).to(x.dtype), "n t (h w) c -> n c t h w", h=height)


def motion_feature(frames: Tensor, following: Tensor) -> Tensor:
    """Features of the following frames, raised where they differ from the frames before; any shape, the same for
    both."""
    return torch.sigmoid(following - frames) * following + following


def correlate(query: Tensor, key: Tensor, taps: Taps) -> Tensor:
    """Mean over channels of query times sampled key: [..., N, C] twice -> [..., N, K], in float32 at least.

    The query carries the mean's 1 / C, so that float16 overflows only where the mean itself would.
    """
    matrix = (query / query.shape[-1]) @ key.transpose(-1, -2)
    return gather_taps(matrix.to(torch.promote_types(matrix.dtype, torch.float32)), taps)


def normalized(correlation: Tensor, normalize: str | None) -> Tensor:
    """Correlation [..., N, K], or its softmax over taps."""
    return correlation.softmax(dim=-1) if normalize == "softmax" else correlation


def aggregate(correlation: Tensor, value: Tensor, taps: Taps) -> Tensor:
    """Sum over taps of correlation [..., N, K] times sampled value, value [..., N, C] -> [..., N, C], in the
    correlation's dtype.

    The product runs in the value's dtype on rows scaled to 1: it is cubic in the features, and float16 ends at 65504.
    The scale cancels, so no gradient goes through it.
    """
    largest = correlation.detach().abs().amax(dim=-1, keepdim=True)
    largest = largest.clamp(min=torch.finfo(correlation.dtype).tiny)
    matrix = scatter_taps(correlation / largest, taps)
    return (matrix.to(value.dtype) @ value).to(correlation.dtype) * largest


def append_empty_frame(frames: Tensor) -> Tensor:
    """[B, T-1, N, C] -> [B, T, N, C] with zeros for the last frame, which no frame follows."""
    return torch.cat([frames, frames.new_zeros(frames.shape[0], 1, *frames.shape[2:])], dim=1)


def identity_linear(width: int) -> nn.Linear:
    """A linear map of `width` channels that starts as the identity, without bias."""
    layer = nn.Linear(width, width, bias=False)
    nn.init.eye_(layer.weight)
    return layer
