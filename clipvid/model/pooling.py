"""Pooling of frame features over time.

Shapes: B clips, T frames, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipvid import InputError
from clipvid.layers.attention import SelfAttention, feed_forward, heads_of
from clipvid.registry import Registry


@dataclass(frozen=True)
class MeanPoolConfig:
    """Options of the mean over frames (none)."""


@dataclass(frozen=True)
class MITConfig:
    """Options of the multi-frame integration transformer (X-CLIP, https://arxiv.org/abs/2208.02816), as in ILA.

    Attributes:
        layers: Number of transformer blocks over the frames.
    """

    layers: int = 1

    def __post_init__(self) -> None:
        if self.layers < 0:
            raise InputError(f"mit: layers={self.layers} must be at least 0")


class Pooling(nn.Module):
    """Base class of temporal pooling. A subclass sets `Config` and implements `forward`.

    Attributes:
        papers: Citations with links, listed on the card of a model with this pooling.
    """

    Config: ClassVar[type] = MeanPoolConfig
    papers: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Any, embed_dim: int, num_frames: int):
        super().__init__()

    def forward(self, features: Tensor) -> Tensor:
        """Pool frame features [B, T, E] to [B, E]."""
        raise NotImplementedError


class MeanPool(Pooling):
    """Mean over frames."""

    def forward(self, features: Tensor) -> Tensor:
        """Pool frame features [B, T, E] to [B, E]."""
        return features.mean(dim=1)


class MITBlock(nn.Module):
    """Pre-norm transformer block over frames, [B, T, E] -> [B, T, E]."""

    def __init__(self, width: int):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = SelfAttention(width, heads_of(width))
        self.mlp = feed_forward(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return frame features [B, T, E]."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class MIT(Pooling):
    """Transformer over frames, `mean_t(x + blocks(x + position))`. Positions are resampled for other frame counts."""

    Config = MITConfig
    papers = ("Ni et al., ECCV 2022, https://arxiv.org/abs/2208.02816",)

    def __init__(self, config: MITConfig, embed_dim: int, num_frames: int):
        super().__init__(config, embed_dim, num_frames)
        self.position = nn.Parameter(0.02 * torch.randn(num_frames, embed_dim))
        self.blocks = nn.Sequential(*(MITBlock(embed_dim) for _ in range(config.layers)))

    def forward(self, features: Tensor) -> Tensor:
        """Pool frame features [B, T, E] to [B, E]."""
        position: Tensor = self.position
        if features.shape[1] != len(position):
            position = F.interpolate(position.T[None], features.shape[1], mode="linear")[0].T
        return (features + self.blocks(features + position)).mean(dim=1)


POOLING = Registry("pooling", {"mean": MeanPool, "mit": MIT}, group="clipvid.pooling")
