"""SIFA, Stand-alone Inter-Frame Attention (Long et al., CVPR 2022, https://arxiv.org/abs/2206.06931).

Every location of a frame attends to a deformable k x k neighborhood in the next frame. The places of the taps are
predicted from the motion between the two frames. Features serve as queries, keys and values.

Known from the authors' code: the operator (`motion_feature`, offsets, `correlate`, `aggregate`, the shift by one
frame), its place after the attention residual, and the LayerNorm that starts at zero. Known from the paper: offsets
from the motion feature (75.4) outperform those from the plain difference (75.0) and none (74.6). The paper's motion
feature has no `+ x`; the implementation follows the code. The authors' Swin uses no offsets, `deformable: false`, and
has SIFA in even blocks only; odd blocks hold a `TemporalConv`. The preset `sifa_transformer` is this arrangement.

Our choice: offsets on, from a convolution that starts at zero; no update of prefix tokens; softmax and projections as
options. Samples are never materialized: bilinear sampling is linear, so two products with [N, N] matrices suffice.

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
from clipvid.adapters.marks import Arrows, Mark, patch_centers
from clipvid.registry import check_option

NORMALIZE = (None, "softmax")
MOTIONS = ("feature", "difference")


@dataclass(frozen=True)
class SIFAConfig(AdapterConfig):
    """Options of SIFA.

    Attributes:
        kernel_size: k, odd. The authors use 3.
        deformable: If False, taps keep their regular places, as in the authors' Swin.
        motion: Input of the offset convolution, `feature` (the authors') or the plain `difference` of the frames.
        normalize: `softmax` over the k * k taps or None. Taps outside the grid take part with correlation 0.
        projected: Apply a linear map to each of queries, keys and values. The maps start as the identity.
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
    """LayerNorm with weight and bias that start at zero. Computes in the dtype of its input."""

    def reset_parameters(self) -> None:
        """Set weight and bias to zero."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last axis of `x`."""
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class SIFA(Adapter):
    """Inter-frame attention of one block, `LN0(SIFA(x))` on patches; the update of prefix tokens is zero.

    The trace of T frames holds T-1 pairs; pair t is frames t and t+1. `offsets` [B, T-1, N, K, 2] is (dy, dx) in
    patches. `correlation` [B, T-1, N, K] compares frame t's patches with the samples of frame t+1, before any softmax.
    """

    Config = SIFAConfig
    papers = ("Long et al., CVPR 2022, https://arxiv.org/abs/2206.06931",)
    place = "after_attention"
    updates_prefix = False

    def __init__(self, config: SIFAConfig, block: BlockInfo):
        super().__init__(config, block)
        width, taps = block.width, config.kernel_size**2
        self.offset_conv: nn.Conv2d | None = None
        if config.deformable:
            self.offset_conv = zero_init(nn.Conv2d(width, 2 * taps, 3, padding=1, bias=False))
        self.q, self.k, self.v = (identity_linear(width) if config.projected else nn.Identity() for _ in range(3))
        self.norm = ZeroLayerNorm(width)

    def forward(self, tokens: Tensor, grid: tuple[int, int], trace: bool = False) -> AdapterOutput:
        """Return the update of the tokens; see `Adapter.forward`."""
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

    def draw_trace(self, trace: dict[str, Tensor], grid: tuple[int, int]) -> list[Mark]:
        """Return an arrow from each patch to the place in the next frame that it resembles most.

        See `Adapter.draw_trace`.
        """
        offsets, correlation = trace["offsets"][0].float(), trace["correlation"][0].float()
        best, tap = correlation.max(dim=-1)  # [T-1, N]
        size = self.config.kernel_size
        moved = torch.stack([tap // size - size // 2, tap % size - size // 2], dim=-1)
        moved = moved + offsets.gather(2, tap[..., None, None].expand(-1, -1, 1, 2))[:, :, 0]
        starts = patch_centers(grid).expand(*tap.shape, 2)
        ends = starts + moved.flip(-1) / torch.tensor([grid[1], grid[0]])
        frames = torch.arange(len(tap))[:, None].expand_as(tap)
        note = "Arrows lead from a patch to the sampled place in the next frame with the highest correlation."
        flat = frames.flatten(), starts.flatten(0, 1), ends.flatten(0, 1), best.clamp(min=0).flatten()
        return [Arrows("offsets of the best sample", note, *flat)]

    def predict_offsets(self, frames: Tensor, following: Tensor, grid: tuple[int, int]) -> Tensor:
        """Predict offsets [B, T-1, N, K, 2], (dy, dx) in patches, from both frames of each pair [B, T-1, N, D].

        Without `deformable`, return zeros of shape [1, 1, N, K, 2].
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
    """Apply the SIFA operator: features of frame t attend to frame t+1. The last frame gets zeros.

    Stores matrices of (HW)^2 per pair of frames, which limits grids to about 32 x 32.

    Args:
        x: [N, C, T, H, W], N clips.
        offsets: [N, 2 * k * k, T, H, W] in cells, of taps read in frame t; (dy, dx) per tap, taps row-major. Offsets of
            frame 0 are ignored.
        kernel_size: k, odd.
        normalize: `softmax` over taps or None.

    Returns:
        [N, C, T, H, W] in the dtype of `x`. The result is cubic in `x`: float16 overflows for features above about 20.

    Raises:
        InputError: `kernel_size` is even, `normalize` is unknown, or the offsets have another shape.
    """
    check_kernel_size("inter_frame_attention", kernel_size)
    check_option("inter_frame_attention", "normalize", normalize, NORMALIZE)
    expected = (x.shape[0], 2 * kernel_size**2, *x.shape[2:])
    if x.ndim != 5 or offsets.shape != expected:
        raise InputError(
            f"inter_frame_attention: expected x [N, C, T, H, W] and offsets "
            f"[N, 2 * {kernel_size} * {kernel_size}, T, H, W], got {tuple(x.shape)} and {tuple(offsets.shape)}"
        )
    height, width = x.shape[3:]
    frames = rearrange(x, "n c t h w -> n t (h w) c")
    offsets = rearrange(offsets[:, :, 1:], "n (k yx) t h w -> n t (h w) k yx", yx=2)
    taps = place_taps(offsets, (height, width), kernel_size)
    correlation = correlate(frames[:, :-1], frames[:, 1:], taps)
    aggregated = aggregate(normalized(correlation, normalize), frames[:, 1:], taps)
    return rearrange(append_empty_frame(aggregated).to(x.dtype), "n t (h w) c -> n c t h w", h=height)


def motion_feature(frames: Tensor, following: Tensor) -> Tensor:
    """Return features of the following frames, amplified where they differ from `frames`. Both have the same shape."""
    return torch.sigmoid(following - frames) * following + following


def correlate(query: Tensor, key: Tensor, taps: Taps) -> Tensor:
    """Return the mean over channels of query times sampled key, [..., N, C] twice -> [..., N, K], at least in float32.

    The factor 1 / C of the mean is applied to the query, so that float16 overflows only where the mean itself would.
    """
    matrix = (query / query.shape[-1]) @ key.transpose(-1, -2)
    return gather_taps(matrix.to(torch.promote_types(matrix.dtype, torch.float32)), taps)


def normalized(correlation: Tensor, normalize: str | None) -> Tensor:
    """Return correlation [..., N, K], or its softmax over taps."""
    return correlation.softmax(dim=-1) if normalize == "softmax" else correlation


def aggregate(correlation: Tensor, value: Tensor, taps: Taps) -> Tensor:
    """Sum sampled values over taps, weighted by correlation: [..., N, K] and [..., N, C] -> [..., N, C].

    The result has the dtype of the correlation. The product runs in the dtype of the value, on rows scaled to 1: it is
    cubic in the features, and float16 ends at 65504. The scale cancels and carries no gradient.
    """
    largest = correlation.detach().abs().amax(dim=-1, keepdim=True)
    largest = largest.clamp(min=torch.finfo(correlation.dtype).tiny)
    matrix = scatter_taps(correlation / largest, taps)
    return (matrix.to(value.dtype) @ value).to(correlation.dtype) * largest


def append_empty_frame(frames: Tensor) -> Tensor:
    """Append zeros for the last frame, which has no next frame: [B, T-1, N, C] -> [B, T, N, C]."""
    return torch.cat([frames, frames.new_zeros(frames.shape[0], 1, *frames.shape[2:])], dim=1)


def identity_linear(width: int) -> nn.Linear:
    """Build a linear map of `width` channels without bias that starts as the identity."""
    layer = nn.Linear(width, width, bias=False)
    nn.init.eye_(layer.weight)
    return layer
