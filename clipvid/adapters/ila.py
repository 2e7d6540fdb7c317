"""ILA, Implicit Learnable Alignment (Tu et al., ICCV 2023, https://arxiv.org/abs/2304.10465).

For each pair of adjacent frames a small convolutional network predicts one interactive point per frame. Patches are
masked around the points. The masked patches and the network's features are added to the stream before the block's
spatial attention. Follows the authors' code where it differs from the paper.

Shapes: B clips, T frames, P prefix tokens, N = H x W patches, D width, C hidden channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from clipvid import InputError
from clipvid.adapters.base import (
    Adapter,
    AdapterConfig,
    AdapterOutput,
    BlockInfo,
    adjacent_pair_mean,
    split_prefix,
    zero_init,
)
from clipvid.adapters.marks import HeatMap, Mark, Points
from clipvid.layers.norm import POLICIES, build_norm
from clipvid.registry import FINITE, check_option, check_ranges

POINT_RANGE = 0.75
MASK_RADIUS = 0.25
MASK_SLOPE = 1.5
JITTER_START = 0.2
JITTER_HALVING_FROM = 29


@dataclass(frozen=True)
class ILAConfig(AdapterConfig):
    """Options of ILA.

    Attributes:
        variant: Interactive block, `k400` (depthwise separable) or `ssv2` (plain 3x3 convolutions).
        hidden: Channels C of the interactive feature, a multiple of 8. The authors use 256.
        norm: Normalization, `batch` (BatchNorm, as the authors), `frozen_batch` (stored statistics) or `group`
            (GroupNorm).
        eval_batch_stats: If True, norms of type `batch` use batch statistics in evaluation too. The authors' K400
            validation does so, because its forward pass switches to training mode. The result of a clip then depends on
            the other clips in the batch. The jitter of the masks is not affected.
        drop_path: Probability of dropping the update of a clip in training.
        loss_weight: Factor of the alignment loss. The authors' is 1. With 0 the points follow the other losses alone.
    """

    variant: Literal["k400", "ssv2"] = "k400"
    hidden: int = 256
    norm: Literal["batch", "frozen_batch", "group"] = "batch"
    eval_batch_stats: bool = False
    drop_path: float = 0.0
    loss_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option("ila", "variant", self.variant, ("k400", "ssv2"))
        check_option("ila", "norm", self.norm, POLICIES)
        if self.eval_batch_stats and self.norm != "batch":
            raise InputError(
                f"ila: eval_batch_stats=True with norm={self.norm!r}, which uses no batch statistics; set "
                "norm='batch' or remove eval_batch_stats"
            )
        if not 0 <= self.drop_path < 1:
            raise InputError(f"ila: drop_path={self.drop_path} must be in [0, 1)")
        check_ranges("ila", self, loss_weight=(0, FINITE))
        if self.hidden <= 0 or self.hidden % 8:
            raise InputError(f"ila: hidden={self.hidden} must be a positive multiple of 8")

    def build_norm(self, channels: int) -> nn.Module:
        """Build a norm of the configured type."""
        return build_norm(self.norm, channels, self.eval_batch_stats)


def interactive_block(config: ILAConfig, width: int) -> nn.Sequential:
    """Build the block that maps pair features [M, 2D, H, W] to [M, C, H, W]."""

    def conv(inputs: int, outputs: int, kernel: int, groups: int = 1) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups)
        return [convolution, config.build_norm(outputs), nn.ReLU(inplace=True)]

    pair, hidden = 2 * width, config.hidden
    if config.variant == "ssv2":
        return nn.Sequential(*conv(pair, hidden, 3), *conv(hidden, hidden, 3))
    return nn.Sequential(*conv(pair, pair, 3, groups=pair), *conv(pair, hidden, 1), *conv(hidden, hidden, 3))


class PointPredictor(nn.Module):
    """Predictor of interactive points from features [M, C, H, W] of M pairs.

    The output [M, 4] is (x, y) in frame t and (x, y) in frame t+1, in grid coordinates from -1 to 1. Initially every
    point is in the middle.
    """

    def __init__(self, config: ILAConfig):
        super().__init__()
        half = config.hidden // 2
        self.conv1 = nn.Conv2d(config.hidden, half, 3, padding=1)
        self.norm1 = config.build_norm(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1)
        self.norm2 = config.build_norm(half)
        self.reduce = nn.Conv1d(half, half // 2, 1, groups=2)
        self.predict = zero_init(nn.Conv1d(half // 2, 4, 1, groups=2))

    def forward(self, features: Tensor) -> Tensor:
        """Return the points [M, 4] of features [M, C, H, W]."""
        x = F.relu(_halve(self.norm1(self.conv1(features))))
        x = F.relu(_halve(self.norm2(self.conv2(x))))
        x = x.amax(dim=(2, 3)).unsqueeze(-1)
        x = self.predict(F.relu(self.reduce(x))).squeeze(-1)
        return POINT_RANGE * torch.tanh(x)


class ILA(Adapter):
    """Alignment of one block.

    `jitter` is the radius over which training averages the masks. `start_epoch` sets it.
    """

    Config = ILAConfig
    papers = ("Tu et al., ICCV 2023, https://arxiv.org/abs/2304.10465",)
    place = "before_attention"
    jitter: Tensor
    shifts: Tensor

    def __init__(self, config: ILAConfig, block: BlockInfo):
        from torchvision.ops import StochasticDepth  # slow to import, and not needed to parse a config

        super().__init__(config, block)
        width, half = block.width, config.hidden // 2
        self.message_fc = nn.Linear(width, width)
        self.message_ln = nn.LayerNorm(width)
        self.interactive_block: Any = interactive_block(config, width)
        self.point_predictor = PointPredictor(config)
        self.temporal_conv = nn.Conv1d(half, half, 3, padding=1)
        self.interactive_fc = nn.Linear(half, width)
        self.temporal_skip_align_fc = zero_init(nn.Linear(width, width))
        self.temporal_skip_fc = zero_init(nn.Linear(width, width))
        self.drop_path = StochasticDepth(config.drop_path, mode="row")
        self.register_buffer("jitter", torch.tensor(JITTER_START))
        self.register_buffer("shifts", torch.tensor((-1.0, 0.0, 1.0)), persistent=False)

    def start_epoch(self, epoch: int) -> None:
        """Set the jitter of `epoch`. It is halved per epoch from `JITTER_HALVING_FROM` on."""
        self.jitter.fill_(JITTER_START * 0.5 ** max(0, epoch - JITTER_HALVING_FROM))

    def forward(self, tokens: Tensor, grid: tuple[int, int], trace: bool = False) -> AdapterOutput:
        """Return the update of the tokens and the alignment loss; see `Adapter.forward`."""
        if tokens.shape[1] == 1:
            return AdapterOutput(torch.zeros_like(tokens), trace={} if trace else None)
        messages = self.message_ln(self.message_fc(tokens))
        prefix, patches = split_prefix(messages, grid)
        features = self._interact(patches, grid)
        points = self._points(features)
        masks = self._masks(points, grid)
        aligned, loss = align(patches, masks)
        update = self.drop_path(self.temporal_skip_align_fc(torch.cat([prefix, aligned], dim=2)))
        update = update + self.drop_path(self._interactive_update(prefix, self._interactive_feature(features)))
        seen = {"points": points.detach(), "masks": masks.detach()} if trace else None
        return AdapterOutput(update, self.config.loss_weight * loss if self.config.loss_weight > 0 else None, seen)

    def draw_trace(self, trace: dict[str, Tensor], grid: tuple[int, int]) -> list[Mark]:
        """Return the interactive points and the mean mask of each frame; see `Adapter.draw_trace`."""
        if not trace:
            return []
        points, masks = trace["points"][0], trace["masks"][0]
        sides = torch.tensor([grid[1], grid[0]])
        cells = (points.float() + 1) / 2 * (sides - 1)  # -1 and 1 are the middles of the outer patches
        pairs = len(points)
        frames = torch.arange(pairs)[:, None] + torch.arange(2)
        values = adjacent_pair_mean(masks[None, :, 0], masks[None, :, 1])[0].float().unflatten(-1, grid)
        return [
            Points(
                "interactive points",
                "Each pair of neighboring frames has a point in either frame, where the two are aligned. The numbers "
                "are its distance from the left and the upper side.",
                frames.flatten(),
                ((cells + 0.5) / sides).flatten(0, 1),
                torch.arange(2).repeat(pairs),
                ("with the next frame", "with the previous frame"),
            ),
            HeatMap("masks", "Patches that the alignment keeps: 1 around the points, 0 far from them.", values),
        ]

    def _interact(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return pair features [B, T-1, C, H, W] of patches [B, T, N, D]."""
        pairs = torch.cat([patches[:, :-1], patches[:, 1:]], dim=-1)
        maps = rearrange(pairs, "b p (h w) c -> (b p) c h w", h=grid[0])
        return self.interactive_block(maps).unflatten(0, pairs.shape[:2])

    def _points(self, features: Tensor) -> Tensor:
        """Return points [B, T-1, 2, 2] of features [B, T-1, C, H, W]: pair, frame of the pair, (x, y)."""
        return self.point_predictor(features.flatten(0, 1)).view(*features.shape[:2], 2, 2)

    def _masks(self, points: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return masks [B, T-1, 2, N] around points [B, T-1, 2, 2].

        In training, each mask is the mean over nine points, shifted by -1, 0 or 1 times the jitter along each axis. The
        mean over this grid of shifts is separable, as the mask itself.
        """
        points = points.unsqueeze(-1)
        if self.training:
            points = points + self.jitter * self.shifts
        rows = point_mask(points[..., 1, :], grid[0]).mean(dim=-2)
        columns = point_mask(points[..., 0, :], grid[1]).mean(dim=-2)
        return (rows.unsqueeze(-1) * columns.unsqueeze(-2)).flatten(-2)

    def _interactive_feature(self, features: Tensor) -> Tensor:
        """Mix each frame's half of the channels over time: [B, T-1, C, H, W] -> [B, T, N, C/2]."""
        frames = adjacent_pair_mean(*features.flatten(-2).chunk(2, dim=2))
        b, t, _, n = frames.shape
        mixed = self.temporal_conv(rearrange(frames, "b t c n -> (b n) c t"))
        return rearrange(mixed, "(b n) c t -> b t n c", b=b, n=n, t=t)

    def _interactive_update(self, prefix: Tensor, features: Tensor) -> Tensor:
        """Return the update [B, T, P+N, D] of prefix tokens [B, T, P, D] and interactive features [B, T, N, C/2].

        In evaluation without gradient, the two linears of the patches are folded into one, C/2 -> D, in every call.
        Wrapped linears (LoRA, sharding) compute more than their weights show and are called as modules.
        """
        expand, skip = self.interactive_fc, self.temporal_skip_fc
        plain = type(expand) is nn.Linear and type(skip) is nn.Linear
        if self.training or torch.is_grad_enabled() or not plain:
            return skip(torch.cat([prefix, expand(features)], dim=2))
        patches = F.linear(features, skip.weight @ expand.weight, skip(expand.bias))
        return torch.cat([skip(prefix), patches], dim=2)


def point_mask(points: Tensor, length: int) -> Tensor:
    """Return soft masks [..., length] around coordinates [...] in [-1, 1].

    The mask is 1 within the radius and then falls linearly to 0. The cells span -1 to 1, both included. A single cell
    is in the middle.
    """
    end = 1.0 if length > 1 else 0.0
    positions = torch.linspace(-end, end, length, device=points.device, dtype=points.dtype)
    distance = (positions - points.unsqueeze(-1)).abs()
    return (1 - MASK_SLOPE * (distance - MASK_RADIUS).clamp(min=0)).clamp(min=0)


def align(patches: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Return masked patches per frame and the alignment loss of adjacent frames.

    Args:
        patches: [B, T, N, D].
        masks: [B, T-1, 2, N].

    Returns:
        The aligned patches [B, T, N, D] and the scalar loss, `1 - cosine` of the mask-weighted sums of a pair's frames,
        averaged over clips and pairs.
    """
    first, second = masks.to(patches.dtype).unbind(2)
    weights = adjacent_pair_mean(first, second)
    exact = torch.promote_types(patches.dtype, torch.float32)
    sums = (
        torch.einsum("bpn,bpnd->bpd", first, patches[:, :-1]).to(exact),
        torch.einsum("bpn,bpnd->bpd", second, patches[:, 1:]).to(exact),
    )
    loss = 1 - F.cosine_similarity(sums[0], sums[1], dim=-1).mean()
    return weights.unsqueeze(-1) * patches, loss


def _halve(maps: Tensor) -> Tensor:
    """Max-pool by 2 along axes with at least 2 cells."""
    return F.max_pool2d(maps, (min(2, maps.shape[-2]), min(2, maps.shape[-1])))
