"""The contract that every temporal adapter keeps.

Shapes: B clips, T frames, P prefix tokens per frame (class token and the like, P >= 0), N = H x W patches,
D the tower's width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from clipvid import InputError
from clipvid.registry import suggest

LayerT = TypeVar("LayerT", nn.Linear, nn.Conv1d, nn.Conv2d)
LayerSpec = str | list[int] | tuple[int, ...]


@dataclass(frozen=True)
class AdapterConfig:
    """Fields that every adapter's config has.

    layers: which blocks get the adapter: `all`, `upper` (the upper half), `every_<k>` (every k-th, the last
        included) or a list of indices from 0 (negative ones count from the end).
    """

    layers: LayerSpec = "all"

    def __post_init__(self) -> None:
        """Check what does not depend on the tower. A subclass with checks calls this one."""
        check_layers(self.layers)


class AdapterOutput(NamedTuple):
    """What an adapter gives back to the encoder.

    update: [B, T, P+N, D], added to the residual stream.
    loss: scalar auxiliary loss of this block, or None.
    trace: detached tensors worth a look (points, masks, matches ...), only when asked for.
    """

    update: Tensor
    loss: Tensor | None = None
    trace: dict[str, Tensor] | None = None


@dataclass(frozen=True)
class BlockInfo:
    """What an adapter may know of the block that it joins.

    width: D. num_heads: of its spatial attention. num_frames: T in training.
    attn, norm: the block's spatial attention and the norm before it, to copy weights from; not to be called or kept.
    """

    width: int
    num_heads: int
    num_frames: int
    attn: nn.Module | None = None
    norm: nn.Module | None = None


class Adapter(nn.Module):
    """Base class of temporal adapters. A subclass sets the class attributes and implements `forward`.

    papers: citations, each with a link, for the card of a model that has the adapter.
    place: where in the block the update is added to the stream.
    identity_at_init: a fresh adapter leaves the features of CLIP as they are, to the bit.
    """

    Config: ClassVar[type[AdapterConfig]] = AdapterConfig
    papers: ClassVar[tuple[str, ...]] = ()
    place: ClassVar[Literal["before_attention", "after_attention"]]
    identity_at_init: ClassVar[bool] = True

    def __init__(self, config: Any, block: BlockInfo):
        super().__init__()
        self.config = config

    def forward(self, tokens: Tensor, grid: tuple[int, int], trace: bool = False) -> AdapterOutput:
        """tokens [B, T, P+N, D] on a grid (H, W), not edited; see `AdapterOutput`."""
        raise NotImplementedError

    def start_epoch(self, epoch: int) -> None:
        """Advance schedules; `epoch` counts from 0. Their state lives in buffers."""


def split_prefix(tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """[B, T, P+N, D] -> prefix tokens [B, T, P, D] and patch tokens [B, T, N, D]."""
    num_patches = grid[0] * grid[1]
    num_prefix = tokens.shape[2] - num_patches
    if num_prefix < 0:
        raise InputError(f"{tokens.shape[2]} tokens per frame do not cover a grid of {grid[0]} x {grid[1]} patches")
    return tokens[:, :, :num_prefix], tokens[:, :, num_prefix:]


def check_layers(spec: LayerSpec) -> None:
    """Refuse what no tower could have as `layers`.

    Raises:
        InputError: neither a known word nor a list of indices; names the nearest word.
    """
    if isinstance(spec, str):
        valid, near = spec in ("all", "upper") or _step(spec) > 0, suggest(spec, ("all", "upper", "every_2"))
    else:
        whole = isinstance(spec, Sequence) and all(type(index) is int for index in spec)
        valid, near = whole and len(spec) > 0, ""
    if not valid:
        raise InputError(f"layers={spec!r}: expected all, upper, every_<k> or a list of block indices{near}")


def select_layers(spec: LayerSpec, num_layers: int) -> tuple[int, ...]:
    """Return the indices of the blocks that `spec` names, ascending; see `AdapterConfig`.

    Raises:
        InputError: an unknown word, or an index outside the tower.
    """
    check_layers(spec)
    if isinstance(spec, str):
        if spec == "upper":
            return tuple(range(num_layers // 2, num_layers))
        step = 1 if spec == "all" else _step(spec)
        return tuple(range((num_layers - 1) % step, num_layers, step))
    indices = list(spec)
    outside = [index for index in indices if not -num_layers <= index < num_layers]
    if outside:
        raise InputError(
            f"layers={indices}: {outside} outside of a tower with {num_layers} blocks (0..{num_layers - 1})"
        )
    return tuple(sorted({index % num_layers for index in indices}))


def _step(spec: str) -> int:
    """Return k of `every_<k>`, 0 for any other word."""
    number = spec.removeprefix("every_")
    return int(number) if number != spec and number.isdecimal() else 0


def zero_init(layer: LayerT) -> LayerT:
    """`layer` with weight and bias at zero: the last map of an adapter that starts as the identity."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def adjacent_pair_mean(first: Tensor, second: Tensor) -> Tensor:
    """Per-frame values from per-pair ones.

    first, second: [B, T-1, ...], what pair (t, t+1) says of its frame t and of its frame t+1. The first and the
    last frame take their only value, the others the mean of their two. Returns [B, T, ...].
    """
    inner = (first[:, 1:] + second[:, :-1]) / 2
    return torch.cat([first[:, :1], inner, second[:, -1:]], dim=1)
