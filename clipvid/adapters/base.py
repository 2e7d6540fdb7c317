"""Interface of temporal adapters.

Shapes: B clips, T frames, P prefix tokens per frame (such as the class token), N = H x W patches, D width of the tower.
P can be 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from clipvid import InputError
from clipvid.adapters.marks import Mark
from clipvid.registry import suggest

LayerT = TypeVar("LayerT", nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
LayerSpec = str | list[int] | tuple[int, ...]
Place = Literal["before_attention", "after_attention"]
LAYER_WORDS = ("all", "upper", "even", "odd")


@dataclass(frozen=True)
class AdapterConfig:
    """Fields common to the configs of all adapters.

    Attributes:
        layers: Blocks that get the adapter: `all`, `upper` (the upper half), `even` or `odd`, `every_<k>` (every k-th
            block, including the last) or a list of indices. Indices count from 0, negative ones from the end.
        former: Values of options that saved models of earlier versions do not list, where the default has changed.
    """

    former: ClassVar[Mapping[str, Any]] = {}

    layers: LayerSpec = "all"

    def __post_init__(self) -> None:
        """Check the fields that do not depend on the tower. Subclasses with checks must call this method."""
        check_layers(self.layers)


class AdapterOutput(NamedTuple):
    """Output of an adapter.

    Attributes:
        update: [B, T, P+N, D], added to the residual stream, or None for no update.
        loss: Scalar auxiliary loss of this block, or None.
        trace: Detached tensors for inspection (points, masks, matches and so on), or None without `trace=True`.
        context: [B, T, M, D], more tokens that the spatial attention of the block sees as queries, keys and values and
            then drops, or None. Only adapters with `adds_context` return it.
    """

    update: Tensor | None = None
    loss: Tensor | None = None
    trace: dict[str, Tensor] | None = None
    context: Tensor | None = None


@dataclass(frozen=True)
class BlockInfo:
    """Properties of the block that an adapter joins.

    Attributes:
        width: D.
        num_heads: Number of heads of the block's spatial attention.
        num_frames: T in training.
        attn: Spatial attention of the block, to copy weights from. Do not call or keep it.
        norm: Norm before `attn`, to copy weights from. Do not call or keep it.
    """

    width: int
    num_heads: int
    num_frames: int
    attn: nn.Module | None = None
    norm: nn.Module | None = None


class Adapter(nn.Module):
    """Base class of temporal adapters. A subclass sets the class attributes and implements `forward`.

    Attributes:
        papers: Citations with links, listed on the card of a model with this adapter.
        place: Place in the block where the update is added to the stream. An instance may have another one.
        identity_at_init: If True, a fresh adapter leaves the features of CLIP bitwise unchanged.
        adds_context: If True, the output has `context`. The place must be `before_attention`. Towers with rotary
            position embeddings are refused, since they have no position for more tokens.
        needs_class_token: If True, towers without prefix tokens (such as SigLIP) are refused.
        updates_prefix: If False, the update of prefix tokens is always 0. An instance may have another value.
    """

    Config: ClassVar[type[AdapterConfig]] = AdapterConfig
    papers: ClassVar[tuple[str, ...]] = ()
    place: Place
    identity_at_init: ClassVar[bool] = True
    adds_context: ClassVar[bool] = False
    needs_class_token: ClassVar[bool] = False
    updates_prefix: bool = True

    def __init__(self, config: Any, block: BlockInfo):
        super().__init__()
        self.config = config

    @classmethod
    def build(cls, name: str, config: Any, block: BlockInfo) -> dict[str, Adapter]:
        """Build the adapter of one block, by `name`. An adapter with several places returns a module for each."""
        return {name: cls(config, block)}

    def forward(self, tokens: Tensor, grid: tuple[int, int], trace: bool = False) -> AdapterOutput:
        """Return the update of tokens [B, T, P+N, D] on a grid (H, W). Must not modify `tokens`."""
        raise NotImplementedError

    def draw_trace(self, trace: dict[str, Tensor], grid: tuple[int, int]) -> list[Mark]:
        """Return marks that show the trace of one clip (B = 1) over its frames, the most telling one first.

        An empty list, as of this base class, means that the size of the update is shown.

        Args:
            trace: Trace of `forward`, on the CPU. It can be empty for a single frame.
            grid: (H, W).
        """
        return []

    def check_export(self, any_frames: bool) -> None:
        """Check that the adapter can be part of an exported graph. By default it can.

        Args:
            any_frames: The number of frames must stay variable.

        Raises:
            InputError: It cannot.
        """

    def start_epoch(self, epoch: int) -> None:
        """Advance schedules to `epoch`, counted from 0. Keep their state in buffers."""


def split_prefix(tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Split [B, T, P+N, D] into prefix tokens [B, T, P, D] and patch tokens [B, T, N, D]."""
    num_patches = grid[0] * grid[1]
    num_prefix = tokens.shape[2] - num_patches
    if num_prefix < 0:
        raise InputError(f"{tokens.shape[2]} tokens per frame do not cover a grid of {grid[0]} x {grid[1]} patches")
    return tokens[:, :, :num_prefix], tokens[:, :, num_prefix:]


def check_layers(spec: LayerSpec) -> None:
    """Check `layers` without knowledge of the tower.

    Raises:
        InputError: The value is neither a known word nor a list of indices.
    """
    if isinstance(spec, str):
        valid, near = spec in LAYER_WORDS or _step(spec) > 0, suggest(spec, (*LAYER_WORDS, "every_2"))
    else:
        whole = isinstance(spec, Sequence) and all(type(index) is int for index in spec)
        valid, near = whole and len(spec) > 0, ""
    if not valid:
        words = ", ".join(LAYER_WORDS)
        raise InputError(f"layers={spec!r}: expected {words}, every_<k> or a list of block indices{near}")


def select_layers(spec: LayerSpec, num_layers: int) -> tuple[int, ...]:
    """Return the indices of the blocks that `spec` selects, in ascending order; see `AdapterConfig`.

    Raises:
        InputError: The word is unknown or selects no block, or an index is out of range.
    """
    check_layers(spec)
    if isinstance(spec, str):
        chosen = _named_layers(spec, num_layers)
        if not chosen:
            raise InputError(f"layers={spec!r} selects no block of a tower of {num_layers}; choose all or [0]")
        return tuple(chosen)
    indices = list(spec)
    outside = [index for index in indices if not -num_layers <= index < num_layers]
    if outside:
        raise InputError(
            f"layers={indices}: {outside} is out of range for a tower of {num_layers} blocks (0..{num_layers - 1})"
        )
    return tuple(sorted({index % num_layers for index in indices}))


def _named_layers(word: str, num_layers: int) -> range:
    """Return the indices that a word selects."""
    if word == "upper":
        return range(num_layers // 2, num_layers)
    if word in ("even", "odd"):
        return range(word == "odd", num_layers, 2)
    step = 1 if word == "all" else _step(word)
    return range((num_layers - 1) % step, num_layers, step)


def _step(spec: str) -> int:
    """Return k of `every_<k>`, or 0 for any other word."""
    number = spec.removeprefix("every_")
    return int(number) if number != spec and number.isdecimal() else 0


def zero_init(layer: LayerT) -> LayerT:
    """Set weight and bias of `layer` to zero and return it. Used as last layer, it makes an adapter the identity."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def adjacent_pair_mean(first: Tensor, second: Tensor) -> Tensor:
    """Return per-frame values [B, T, ...] from per-pair values.

    The first and the last frame take their only value, other frames the mean of their two values.

    Args:
        first: [B, T-1, ...], values of pair (t, t+1) for frame t.
        second: [B, T-1, ...], values of pair (t, t+1) for frame t+1.
    """
    inner = (first[:, 1:] + second[:, :-1]) / 2
    return torch.cat([first[:, :1], inner, second[:, -1:]], dim=1)


def from_previous(x: Tensor) -> Tensor:
    """Move frames of [B, T, ...] by one: frame t gets frame t-1, and the first frame zeros."""
    return torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)


def from_next(x: Tensor) -> Tensor:
    """Move frames of [B, T, ...] by one: frame t gets frame t+1, and the last frame zeros."""
    return torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], dim=1)
