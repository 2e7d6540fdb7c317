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
from clipvid.layers.sizes import has_length
from clipvid.registry import Registry


@dataclass(frozen=True)
class MeanPoolConfig:
    """Options of the mean over frames (none)."""


@dataclass(frozen=True)
class MITConfig:
    """Options of the multi-frame integration transformer (X-CLIP, https://arxiv.org/abs/2208.02816), as in ILA.

    Attributes:
        layers: Number of transformer blocks over the frames.
        eps: Constant in the LayerNorms (ActionCLIP has 1e-12).
        positions: Length of the table of positions, of which T frames use the first T (ActionCLIP has 77). By default
            the number of frames in training, resampled for other numbers of frames.
    """

    layers: int = 1
    eps: float = 1e-5
    positions: int | None = None

    def __post_init__(self) -> None:
        if self.layers < 0:
            raise InputError(f"mit: layers={self.layers} must be at least 0")
        if not 0 < self.eps < 1:
            raise InputError(f"mit: eps={self.eps} must be above 0 and below 1")
        if self.positions is not None and self.positions < 1:
            raise InputError(f"mit: positions={self.positions} must be at least 1, or unset")


class Pooling(nn.Module):
    """Base class of temporal pooling. A subclass sets `Config` and implements `forward`.

    Attributes:
        papers: Citations with links, listed on the card of a model with this pooling.
    """

    Config: ClassVar[type] = MeanPoolConfig
    papers: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Any, embed_dim: int, num_frames: int):
        super().__init__()

    @property
    def max_frames(self) -> int | None:
        """Largest number of frames, or None for any."""
        return None

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

    def __init__(self, width: int, eps: float = 1e-5):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.attn = SelfAttention(width, heads_of(width))
        self.mlp = feed_forward(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return frame features [B, T, E]."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class MIT(Pooling):
    """Transformer over frames, `mean_t(x + blocks(x + position))`, see `MITConfig` for the positions.

    Raises:
        InputError: The table of positions is shorter than the clips.
    """

    Config = MITConfig
    papers = ("Ni et al., ECCV 2022, https://arxiv.org/abs/2208.02816",)

    def __init__(self, config: MITConfig, embed_dim: int, num_frames: int):
        super().__init__(config, embed_dim, num_frames)
        self.is_table = config.positions is not None
        length = config.positions or num_frames
        if length < num_frames:
            raise InputError(f"mit: positions={length} is less than num_frames={num_frames}; set it to at least that")
        self.position = nn.Parameter(0.02 * torch.randn(length, embed_dim))
        self.blocks = nn.Sequential(*(MITBlock(embed_dim, config.eps) for _ in range(config.layers)))

    @property
    def max_frames(self) -> int | None:
        """Length of the table of positions, if there is one."""
        return self.position.shape[0] if self.is_table else None

    def forward(self, features: Tensor) -> Tensor:
        """Pool frame features [B, T, E] to [B, E]."""
        position: Tensor = self.position
        num_frames = features.shape[1]
        if self.is_table:
            if num_frames > len(position):
                raise InputError(f"mit: clips of {num_frames} frames, but there are positions for {len(position)}")
            position = position[:num_frames]
        elif not has_length(num_frames, len(position)):
            position = F.interpolate(position.T[None], num_frames, mode="linear")[0].T
        return (features + self.blocks(features + position)).mean(dim=1)


POOLING = Registry("pooling", {"mean": MeanPool, "mit": MIT}, group="clipvid.pooling")
