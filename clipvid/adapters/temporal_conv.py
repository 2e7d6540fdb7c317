"""Temporal convolution of SIFA-Transformer (Long et al., CVPR 2022, https://arxiv.org/abs/2206.06931).

Known from the authors' code: in the Swin of SIFA, blocks with an odd index hold this layer after the attention
residual, where the even blocks hold SIFA. It has full D x D matrices without bias, which start at zero, and neither
norm nor activation. It reads the residual stream at every location and pads with zeros in time.

Our choice: prefix tokens count as locations (`tokens: all`), since the head of a CLIP tower reads the class token. The
authors' Swin has no class token and reads all locations.

Shapes: B clips, T frames, P prefix tokens, N = H x W patches, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipvid.adapters.base import (
    Adapter,
    AdapterConfig,
    AdapterOutput,
    BlockInfo,
    from_next,
    from_previous,
    split_prefix,
)
from clipvid.adapters.marks import HeatMap, Mark
from clipvid.registry import check_option


@dataclass(frozen=True)
class TemporalConvConfig(AdapterConfig):
    """Options of the temporal convolution.

    Attributes:
        tokens: Tokens to update, `all` or `patches` (without prefix tokens such as the class token).
    """

    tokens: Literal["all", "patches"] = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option("temporal_conv", "tokens", self.tokens, ("all", "patches"))


class TemporalConv(Adapter):
    """Convolution of three frames at every location, `W_-1 x_{t-1} + W_0 x_t + W_1 x_{t+1}`, zero at initialization.

    Frames before the first and after the last are zeros. The trace holds `response` [B, T, P+N], the norm of every
    token's update.
    """

    Config = TemporalConvConfig
    papers = ("Long et al., CVPR 2022, https://arxiv.org/abs/2206.06931",)
    place = "after_attention"

    def __init__(self, config: TemporalConvConfig, block: BlockInfo):
        super().__init__(config, block)
        self.updates_prefix = config.tokens == "all"
        self.weight = nn.Parameter(torch.zeros(3, block.width, block.width))  # of frames t-1, t and t+1

    def forward(self, tokens: Tensor, grid: tuple[int, int], trace: bool = False) -> AdapterOutput:
        """Return the update of the tokens; see `Adapter.forward`."""
        prefix, patches = split_prefix(tokens, grid)
        update = self._convolve(tokens if self.config.tokens == "all" else patches)
        if self.config.tokens == "patches":
            update = F.pad(update, (0, 0, prefix.shape[2], 0))
        return AdapterOutput(update, trace={"response": update.detach().norm(dim=-1)} if trace else None)

    def draw_trace(self, trace: dict[str, Tensor], grid: tuple[int, int]) -> list[Mark]:
        """Return the size of the update; see `Adapter.draw_trace`."""
        note = "Size of the change that the convolution over time makes to each patch."
        patches = trace["response"][0, :, -grid[0] * grid[1] :]
        return [HeatMap("response", note, patches.float().unflatten(-1, grid))]

    def _convolve(self, tokens: Tensor) -> Tensor:
        """Convolve [B, T, L, D] over frames: one product with all three matrices, then sums of moved frames."""
        before, own, after = F.linear(tokens, self.weight.flatten(0, 1)).chunk(3, dim=-1)
        return own + from_previous(before) + from_next(after)
