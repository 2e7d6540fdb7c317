"""Record of one pass through a model: attention weights, updates of the adapters, and tokens of the last block.

Fused attention does not return its weights. `record` replaces it, within its block, by an explicit one with the same
result, whatever class of attention the tower has.

Shapes: B clips, T frames, P prefix tokens, N patches, M context tokens, L = P + N + M, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from clipvid import InputError
from clipvid.adapters import Adapter, AdapterOutput
from clipvid.model.video_clip import VideoCLIP


@dataclass
class AdapterRecord:
    """Input and output of one adapter.

    Attributes:
        adapter: The adapter.
        tokens: Its input [B, T, P+N, D], as a node of the graph that only this adapter reads.
        output: Its output.
    """

    adapter: Adapter
    tokens: Tensor
    output: AdapterOutput


@dataclass
class BlockRecord:
    """Values of one block.

    Attributes:
        attention: Weights [B * T, heads, L, L], or None if the block's attention was not seen.
        attention_input: [B * T, L, D], normed tokens in towers whose norm is before the attention.
        adapters: Records by name, in the order of the calls.
    """

    attention: Tensor | None = None
    attention_input: Tensor | None = None
    adapters: dict[str, AdapterRecord] = field(default_factory=dict)


@dataclass
class Record:
    """Values of one pass, by block, and the tokens of the last block [B, T, P+N, D]."""

    blocks: list[BlockRecord]
    tokens: Tensor | None = None

    def attentions(self) -> list[Tensor]:
        """Return the attention weights of all blocks.

        Raises:
            InputError: The attention of a block does not use torch's fused attention.
        """
        weights = [block.attention for block in self.blocks if block.attention is not None]
        if len(weights) < len(self.blocks):
            raise InputError(
                "the attention of this tower cannot be read, since it does not call torch's "
                "scaled_dot_product_attention; use method='grad_cam' or method='occlusion'"
            )
        return weights


class ExplicitAttention(TorchFunctionMode):
    """Mode that computes attention weights explicitly while `target` is set, and stores them there."""

    def __init__(self) -> None:
        super().__init__()
        self.target: BlockRecord | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.target is None or func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self.target.attention = attention_weights(*args, **(kwargs or {}))
        return self.target.attention @ args[2]


def attention_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return the weights of `torch.nn.functional.scaled_dot_product_attention`, [..., L, L], without dropout."""
    scores = query @ key.mT * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -math.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(dim=-1)


@contextmanager
def record(model: VideoCLIP) -> Iterator[Record]:
    """Record the next forward pass of `model`, without a change of its result. Compiled blocks run uncompiled."""
    layers = model.encoder.layers
    result = Record([BlockRecord() for _ in layers])
    mode = ExplicitAttention()

    def keep_tokens(module: nn.Module, args: Any, output: Any) -> None:
        result.tokens = output[0]

    with ExitStack() as stack:
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        for layer, block in zip(layers, result.blocks, strict=True):
            for handle in _hook_attention(layer.block.attn, block, mode):
                stack.callback(handle.remove)
            for name, adapter in layer.adapters.items():
                for handle in _hook_adapter(name, adapter, block):
                    stack.callback(handle.remove)
        stack.callback(layers[-1].register_forward_hook(keep_tokens).remove)
        stack.enter_context(mode)
        yield result


def _hook_attention(attention: nn.Module, block: BlockRecord, mode: ExplicitAttention) -> list[Any]:
    def start(module: nn.Module, args: tuple[Any, ...]) -> None:
        mode.target, block.attention_input = block, args[0]

    def stop(module: nn.Module, args: Any, output: Any) -> None:
        mode.target = None

    return [attention.register_forward_pre_hook(start), attention.register_forward_hook(stop, always_call=True)]


def _hook_adapter(name: str, adapter: Adapter, block: BlockRecord) -> list[Any]:
    def split(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0].view_as(args[0]), *args[1:])

    def keep(module: nn.Module, args: tuple[Any, ...], output: AdapterOutput) -> None:
        block.adapters[name] = AdapterRecord(adapter, args[0], output)

    return [adapter.register_forward_pre_hook(split), adapter.register_forward_hook(keep)]
