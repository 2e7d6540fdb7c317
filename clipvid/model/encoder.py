"""Video encoder: a CLIP image tower applied to frames, with temporal adapters between its blocks.

Shapes: B clips, T frames, P prefix tokens, N = H x W patches, D width, E embedding, S image side.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clipvid import InputError
from clipvid.adapters import Adapter
from clipvid.layers.norm import frozen_bn_statistics

if TYPE_CHECKING:
    from clipvid.backbone import Backbone, Block, TimmBlock

Traces = dict[str, dict[str, Tensor]]


class FrozenFeatures(NamedTuple):
    """Output of the lower, frozen part of the encoder for a batch of clips.

    Attributes:
        tokens: [B, T, P+N, D] after the embedding and the first `depth` blocks. [B, T, E] after the pooling head.
        depth: Number of blocks. One more than the encoder has if the pooling head of the tower is included.
    """

    tokens: Tensor
    depth: int


class EncoderOutput(NamedTuple):
    """Output of the encoder.

    Attributes:
        frame_features: [B, T, E], image features of the tower, not normalized.
        patch_tokens: [B, T, N, D] of the last block, before the tower's final norm. N = 0 after frame features, and
            without `patches`.
        losses: Scalar auxiliary losses by `<adapter>.<block>`.
        traces: Traces of the adapters by `<adapter>.<block>`, empty unless requested.
        tokens: [B, T, P+N, D] of the last block, [B, T, P, D] without `patches`, or None after frame features.
    """

    frame_features: Tensor
    patch_tokens: Tensor
    losses: dict[str, Tensor]
    traces: Traces
    tokens: Tensor | None = None


class VideoBlock(nn.Module):
    """Block of the tower with its adapters: before attention, attention, after attention, MLP.

    Raises:
        InputError: An adapter adds context tokens, and the block has rotary position embeddings.
    """

    def __init__(self, block: Block | TimmBlock, adapters: Mapping[str, Adapter]):
        super().__init__()
        adding = [name for name, adapter in adapters.items() if adapter.adds_context]
        if adding and getattr(block, "rope", None) is not None:
            raise InputError(
                f"adapter {adding[0]} adds tokens to the attention, but the tower has rotary position embeddings, "
                "which give each token a place in the image; choose another backbone (ViT-B-16, ViT-L-14) or adapter"
            )
        self.block = block
        self.adapters: Any = nn.ModuleDict(dict(adapters))

    def forward(
        self, tokens: Tensor, grid: tuple[int, int], trace: bool = False, kept: int | None = None
    ) -> tuple[Tensor, dict[str, Tensor], Traces]:
        """Return tokens [B, T, P+N, D], and losses and traces by adapter.

        Args:
            tokens: [B, T, P+N, D].
            grid: (H, W).
            trace: Also return traces.
            kept: Return only this many tokens of each frame, the first ones. The MLP, which treats each token alone,
                skips the others.
        """
        losses: dict[str, Tensor] = {}
        traces: Traces = {}
        for place, half in (
            ("before_attention", self.block.attention),
            ("after_attention", self.block.feed_forward),
        ):
            context: list[Tensor] = []
            for name, adapter in self.adapters.items():
                if adapter.place != place:
                    continue
                output = adapter(tokens, grid, trace)
                if output.update is not None:
                    tokens = tokens + output.update
                if output.context is not None:
                    context.append(_checked_context(name, adapter, output.context, tokens))
                if output.loss is not None:
                    losses[name] = output.loss
                if output.trace is not None:
                    traces[name] = output.trace
            if place == "after_attention" and kept is not None:
                tokens = tokens[:, :, :kept]
            seen = torch.cat([tokens, *context], dim=2) if context else tokens
            update = half(seen.flatten(0, 1)).view_as(seen)
            tokens = tokens + update[:, :, : tokens.shape[2]]
        return tokens, losses, traces


class VideoEncoder(nn.Module):
    """Encoder of frames: the blocks of `backbone`, each with its adapters by name. None means no adapters.

    Raises:
        InputError: An adapter does not fit the tower: see `Adapter.adds_context` and `Adapter.needs_class_token`.
    """

    def __init__(self, backbone: Backbone, adapters: Sequence[Mapping[str, Adapter]] | None = None):
        super().__init__()
        self.tower = backbone.vision
        by_block = adapters if adapters is not None else [{} for _ in backbone.blocks]
        needing = sorted({name for own in by_block for name, adapter in own.items() if adapter.needs_class_token})
        if needing and self.tower.num_prefix == 0:
            raise InputError(
                f"adapter {needing[0]} reads the class token of each frame, but {backbone.name} has none; choose a "
                "backbone with one (ViT-B-16, ViT-L-14 ...) or another adapter"
            )
        self.layers: Any = nn.ModuleList(
            VideoBlock(block, own) for block, own in zip(backbone.blocks, by_block, strict=True)
        )
        self.gradient_checkpointing = False

    def adapters(self) -> list[Adapter]:
        """Return all adapters, first block first."""
        return [adapter for layer in self.layers for adapter in layer.adapters.values()]

    def image_tower(self) -> list[nn.Module]:
        """Return the modules of CLIP: embedding and pooling head, then the blocks."""
        return [self.tower, *(layer.block for layer in self.layers)]

    def compile_blocks(self, **options: Any) -> None:
        """Compile every block with its adapters by `torch.compile(**options)`. Equal blocks share one compilation."""
        for layer in self.layers:
            layer.compile(**options)

    def lower_frozen_precision(self) -> None:
        """Cast frozen linears and convolutions of the image tower to bfloat16, which halves their memory.

        Results under bfloat16 autocast are bitwise the same, since autocast performs the same cast at every use.
        """
        for module in (child for part in self.image_tower() for child in part.modules()):
            if isinstance(module, nn.Linear | nn.Conv2d) and not _trained(module.parameters()):
                module.to(torch.bfloat16)

    def forward(self, frames: Tensor | FrozenFeatures, trace: bool = False, patches: bool = True) -> EncoderOutput:
        """Encode normalized frames [B, T, 3, S, S], or continue from the output of `lower`.

        Parts below everything that is trained keep no graph.

        Args:
            frames: Frames, or the output of `lower`.
            trace: Also return the traces of the adapters.
            patches: Return the patch tokens of the last block. Without them, its MLP skips the patches if the tower
                pools the prefix tokens.
        """
        tokens, done, needed = frames, 0, False
        if isinstance(frames, FrozenFeatures):
            tokens, done = frames
            if done > len(self.layers):
                return EncoderOutput(tokens, tokens.new_empty(*tokens.shape[:2], 0, self.tower.width), {}, {})
        else:
            needed = frames.requires_grad or _trained(self.tower.ends()[0])
            with torch.set_grad_enabled(torch.is_grad_enabled() and needed):
                tokens = self._embed(frames)
        kept = None if patches or not self.tower.pools_prefix else self.tower.num_prefix
        tokens, losses, traces = self._blocks(tokens, range(done, len(self.layers)), needed, trace, kept)
        features = self.tower.head(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
        return EncoderOutput(features, tokens[:, :, self.tower.num_prefix :], losses, traces, tokens)

    def frozen_depth(self, with_head: bool = False) -> int | None:
        """Return the number of blocks that training leaves alone, for `lower`; None if the embedding is trained.

        Blocks with an adapter that has weights or state do not count. Neither do blocks with dropout or BatchNorm,
        which compute something else in training.

        Args:
            with_head: count the pooling head of the tower as one more block.
        """
        before, after = self.tower.ends()
        if _trained(before) or _varies(self.tower):
            return None
        depth = next((index for index, layer in enumerate(self.layers) if not _is_fixed(layer)), len(self.layers))
        return depth + 1 if with_head and depth == len(self.layers) and not _trained(after) else depth

    def frame_depth(self, with_head: bool = False) -> int:
        """Return the number of blocks below the first adapter, for `lower`. They treat each frame alone.

        Args:
            with_head: count the pooling head of the tower as one more block if there are no adapters.
        """
        depth = next((index for index, layer in enumerate(self.layers) if layer.adapters), len(self.layers))
        return depth + 1 if with_head and depth == len(self.layers) else depth

    @torch.no_grad()
    def lower(self, frames: Tensor, depth: int) -> FrozenFeatures:
        """Encode normalized frames [B, T, 3, S, S] up to `depth`, see `FrozenFeatures`."""
        last = min(depth, len(self.layers))
        tokens, _, _ = self._blocks(self._embed(frames), range(last), False, False)
        if depth > last:
            tokens = self.tower.head(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
        return FrozenFeatures(tokens, depth)

    def _embed(self, frames: Tensor) -> Tensor:
        return self.tower.embed(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])

    def _blocks(
        self, tokens: Tensor, indices: range, needed: bool, trace: bool, kept: int | None = None
    ) -> tuple[Tensor, dict[str, Tensor], Traces]:
        """Run some of the blocks. `needed`: a gradient is needed at their input. `kept`: tokens after the last one."""
        graph = torch.is_grad_enabled()
        losses: dict[str, Tensor] = {}
        traces: Traces = {}
        for index in indices:
            layer = self.layers[index]
            needed = needed or _trained(layer.parameters())
            with torch.set_grad_enabled(graph and needed):
                last = kept if index == indices[-1] else None
                tokens, layer_losses, layer_traces = self._run(layer, tokens, trace, last)
            losses |= {f"{name}.{index}": loss for name, loss in layer_losses.items()}
            traces |= {f"{name}.{index}": seen for name, seen in layer_traces.items()}
        return tokens, losses, traces

    def _run(
        self, layer: nn.Module, tokens: Tensor, trace: bool, kept: int | None
    ) -> tuple[Tensor, dict[str, Tensor], Traces]:
        if not (self.gradient_checkpointing and self.training and torch.is_grad_enabled()):
            return layer(tokens, self.tower.grid, trace, kept)
        # Recomputation repeats the batch: BatchNorm must not count it twice.
        passes = (torch.enable_grad(), frozen_bn_statistics(layer))
        return checkpoint(layer, tokens, self.tower.grid, trace, kept, use_reentrant=False, context_fn=lambda: passes)


def _checked_context(name: str, adapter: Adapter, context: Tensor, tokens: Tensor) -> Tensor:
    """Return the context tokens of an adapter in the type of `tokens`.

    Raises:
        InputError: The adapter does not declare them, acts after the attention, or the shape is wrong.
    """
    if not adapter.adds_context or adapter.place != "before_attention":
        raise InputError(
            f"adapter {name} returned context tokens; that needs adds_context = True and place = 'before_attention'"
        )
    if context.ndim != 4 or context.shape[:2] != tokens.shape[:2] or context.shape[3] != tokens.shape[3]:
        batch, frames, _, width = tokens.shape
        raise InputError(
            f"adapter {name} returned context tokens {list(context.shape)}; expected [{batch}, {frames}, M, {width}]"
        )
    return context.to(tokens.dtype)


def _trained(parameters: Iterable[nn.Parameter]) -> bool:
    return any(parameter.requires_grad for parameter in parameters)


def _is_fixed(layer: VideoBlock) -> bool:
    """Return True if a block computes the same in every step of training."""
    adapters = list(layer.adapters.values())
    scheduled = any(type(adapter).start_epoch is not Adapter.start_epoch for adapter in adapters)
    own = any(True for adapter in adapters for _ in (*adapter.parameters(), *adapter.buffers()))
    return not (scheduled or own or _trained(layer.parameters()) or _varies(layer))


def _varies(module: nn.Module) -> bool:
    """Return True if a module computes something else in training: dropout of values, paths or patches, BatchNorm."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            return True
        rates = (getattr(part, name, 0) for name in ("p", "prob", "drop_prob"))
        if any(isinstance(rate, int | float) and rate > 0 for rate in rates):
            return True
    return False
