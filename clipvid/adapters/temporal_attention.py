"""Divided space-time attention (TimeSformer, Bertasius et al., ICML 2021, https://arxiv.org/abs/2102.05095).

Every token attends over time to the tokens at the same place in other frames, before the block's spatial attention.

Known from the paper [paper]: attention over time and then over space in one block. Our choice [construction]: the
baseline is ATA without its matching, `update = Linear0(MHA(LN(x) + e))`. The linear starts at zero, attention and norm
start from the block's weights. The temporal embedding `e` [T, D] is learned and starts at zero. It is added after the
norm, so that it has the same weight in every block. Before the norm, the stream that grows with depth would drown it.

Shapes: B clips, T frames, P prefix tokens, N patches, L = P + N tokens per frame, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipvid.adapters.base import Adapter, AdapterOutput, BlockInfo, split_prefix, zero_init
from clipvid.adapters.marks import FrameMatrix, Mark
from clipvid.layers.attention import SelfAttention
from clipvid.layers.sizes import has_length


class TemporalAttention(Adapter):
    """Temporal attention of one block. Prefix tokens attend like patches, each to itself in the other frames.

    Weights are copied from the block's attention and norm if these are `SelfAttention` and `nn.LayerNorm`, and fresh
    otherwise. For other numbers of frames than `BlockInfo.num_frames`, the embedding is resampled linearly. Each frame
    is then the middle of an equal part of the clip.
    """

    papers = ("Bertasius et al., ICML 2021, https://arxiv.org/abs/2102.05095",)
    place = "before_attention"

    def __init__(self, config: Any, block: BlockInfo):
        super().__init__(config, block)
        self.norm = _copied_norm(block)
        self.attn = _copied_attention(block)
        self.temporal_embed = nn.Parameter(torch.zeros(block.num_frames, block.width))
        self.temporal_fc = zero_init(nn.Linear(block.width, block.width))

    def forward(self, tokens: Tensor, grid: tuple[int, int], trace: bool = False) -> AdapterOutput:
        """Return the update of the tokens; see `Adapter.forward`.

        The trace holds `attention` [B, P+N, T, T], the mean over heads of the weight of each frame (last axis).
        """
        split_prefix(tokens, grid)  # checks the grid
        update, seen = self.attend(self.norm(tokens).transpose(1, 2), trace)
        return AdapterOutput(update.transpose(1, 2), trace=seen)

    def draw_trace(self, trace: dict[str, Tensor], grid: tuple[int, int]) -> list[Mark]:
        """Return the attention over time, averaged over patches; see `Adapter.draw_trace`."""
        patches = trace["attention"][0, -grid[0] * grid[1] :]
        note = "Weights with which the patches of a frame (row) read the frames (columns), averaged over patches."
        return [FrameMatrix("attention over time", note, patches.float().mean(dim=0))]

    def attend(self, tubes: Tensor, trace: bool) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Return the updates of normed tokens [B, L, T, D], one row per tube, and the trace or None."""
        x = (tubes + self._embed_of(tubes.shape[2])).flatten(0, 1)
        update = self.temporal_fc(self.attn(x)).view(tubes.shape)
        return update, {"attention": self.attn.mean_weights(x).unflatten(0, tubes.shape[:2])} if trace else None

    def _embed_of(self, num_frames: int) -> Tensor:
        """Return the temporal embedding for any number of frames, [T, D]."""
        if has_length(num_frames, len(self.temporal_embed)):
            return self.temporal_embed
        return F.interpolate(self.temporal_embed.mT.unsqueeze(0), num_frames, mode="linear").squeeze(0).mT


def _copied_attention(block: BlockInfo) -> SelfAttention:
    attention = SelfAttention(block.width, block.num_heads)
    if isinstance(block.attn, SelfAttention):
        attention.load_state_dict(block.attn.state_dict())
    # A key bias adds the same value to all scores of a query: outputs do not depend on it, its gradient is noise.
    attention.k.register_parameter("bias", None)
    return attention


def _copied_norm(block: BlockInfo) -> nn.LayerNorm:
    if not isinstance(block.norm, nn.LayerNorm):
        return nn.LayerNorm(block.width)
    norm = nn.LayerNorm(block.width, eps=block.norm.eps)
    norm.load_state_dict(norm.state_dict() | block.norm.state_dict())
    return norm
