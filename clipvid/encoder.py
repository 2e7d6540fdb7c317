"""The video encoder: a CLIP image tower run over frames, with temporal adapters between its blocks.

Shapes: B clips, T frames, P prefix tokens, N = H x W patches, D width, E embedding, S image side.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clipvid.adapters import Adapter, AdapterConfig, BlockInfo, build_adapters
from clipvid.adapters.norm import hold_statistics
from clipvid.backbone import Backbone, Block

Traces = dict[str, dict[str, Tensor]]


class EncoderOutput(NamedTuple):
    """What the encoder makes of clips.

    frame_features: [B, T, E], the tower's own image features, not normalised.
    patch_tokens: [B, T, N, D] of the last block, before the tower's final norm.
    losses: scalar auxiliary losses by `<adapter>.<block>`.
    traces: what adapters show of themselves, by `<adapter>.<block>`; empty unless asked for.
    """

    frame_features: Tensor
    patch_tokens: Tensor
    losses: dict[str, Tensor]
    traces: Traces


class VideoBlock(nn.Module):
    """One block of the tower with its adapters: before attention, attention, after attention, MLP."""

    def __init__(self, block: Block, adapters: dict[str, Adapter]):
        super().__init__()
        self.block = block
        self.adapters: Any = nn.ModuleDict(adapters)

    def forward(
        self, tokens: Tensor, grid: tuple[int, int], trace: bool = False
    ) -> tuple[Tensor, dict[str, Tensor], Traces]:
        """Tokens [B, T, P+N, D] -> tokens [B, T, P+N, D], losses and traces by adapter."""
        losses: dict[str, Tensor] = {}
        traces: Traces = {}
        for place, half in (
            ("before_attention", self.block.attention),
            ("after_attention", self.block.feed_forward),
        ):
            for name, adapter in self.adapters.items():
                if adapter.place != place:
                    continue
                output = adapter(tokens, grid, trace)
                tokens = tokens + output.update
                if output.loss is not None:
                    losses[name] = output.loss
                if output.trace is not None:
                    traces[name] = output.trace
            tokens = tokens + half(tokens.flatten(0, 1)).view_as(tokens)
        return tokens, losses, traces


class VideoEncoder(nn.Module):
    """Frames -> frame features, through the blocks of `backbone` with fresh adapters of `configs` among them."""

    def __init__(self, backbone: Backbone, configs: dict[str, AdapterConfig], num_frames: int):
        super().__init__()
        width, heads, depth = backbone.vision.width, backbone.num_heads, len(backbone.blocks)
        self.tower = backbone.vision
        self.layers: Any = nn.ModuleList(
            VideoBlock(
                block,
                build_adapters(configs, index, depth, BlockInfo(width, heads, num_frames, block.attn, block.ln_1)),
            )
            for index, block in enumerate(backbone.blocks)
        )
        self.gradient_checkpointing = False

    def adapters(self) -> list[Adapter]:
        """Every adapter, first block first."""
        return [adapter for layer in self.layers for adapter in layer.adapters.values()]

    def image_tower(self) -> list[nn.Module]:
        """The modules that came from CLIP: embedding and pooling head, then the blocks."""
        return [self.tower, *(layer.block for layer in self.layers)]

    def forward(self, frames: Tensor, trace: bool = False) -> EncoderOutput:
        """Normalised frames [B, T, 3, S, S] -> `EncoderOutput`."""
        b, t = frames.shape[:2]
        tokens = rearrange(self.tower.embed(frames.flatten(0, 1)), "(b t) n d -> b t n d", b=b, t=t)
        losses: dict[str, Tensor] = {}
        traces: Traces = {}
        for index, layer in enumerate(self.layers):
            tokens, layer_losses, layer_traces = self._run(layer, tokens, trace)
            losses |= {f"{name}.{index}": loss for name, loss in layer_losses.items()}
            traces |= {f"{name}.{index}": seen for name, seen in layer_traces.items()}
        features = self.tower.head(tokens.flatten(0, 1)).unflatten(0, (b, t))
        return EncoderOutput(features, tokens[:, :, self.tower.num_prefix :], losses, traces)

    def _run(self, layer: nn.Module, tokens: Tensor, trace: bool) -> tuple[Tensor, dict[str, Tensor], Traces]:
        if not (self.gradient_checkpointing and self.training and torch.is_grad_enabled()):
            return layer(tokens, self.tower.grid, trace)
        # The second pass sees the same batch again: BatchNorm must not count it twice.
        passes = (torch.enable_grad(), hold_statistics(layer))
        return checkpoint(layer, tokens, self.tower.grid, trace, use_reentrant=False, context_fn=lambda: passes)
