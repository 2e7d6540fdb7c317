"""Token shift: some channels of every frame come from its neighbours in time. No parameters, next to no cost.

The baseline "temporal shift" on CLIP of ILA's comparison (https://arxiv.org/abs/2304.10465) [paper: that it is one];
shifting channels in time is of TSM (Lin et al., ICCV 2019, https://arxiv.org/abs/1811.08383). Ours [construction]: the
place in the block, the shift of the residual stream itself, and which tokens take part by default.

Shapes: B clips, T frames, P prefix tokens, N = H x W patches, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clipvid import InputError
from clipvid.adapters.base import Adapter, AdapterConfig, AdapterOutput, BlockInfo, split_prefix
from clipvid.registry import check_option

FIRST_FRAME = (0, 0, 0, 0, 1, 0)
LAST_FRAME = (0, 0, 0, 0, 0, 1)


@dataclass(frozen=True)
class ShiftConfig(AdapterConfig):
    """Options of the token shift.

    fraction: share of the channels taken from the frame before, and again from the frame after, rounded down to whole
        channels; at most 0.5.
    tokens: what is shifted, `patches`, `prefix` (class token and the like) or `both`.
    """

    fraction: float = 0.125
    tokens: Literal["patches", "prefix", "both"] = "patches"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option("shift", "tokens", self.tokens, ("patches", "prefix", "both"))
        if not 0 < self.fraction <= 0.5:
            raise InputError(f"shift: fraction={self.fraction} must lie in (0, 0.5]")


class Shift(Adapter):
    """Shifts the stream before the block's spatial attention.

    The first channels come from the frame before, as many after them from the frame after, zeros at the ends of the
    clip (a single frame has no neighbours, so these channels of it become 0); the others stay. The update is the
    shifted stream less the stream. There is nothing to trace.
    """

    Config = ShiftConfig
    papers = (
        "Tu et al., ICCV 2023, https://arxiv.org/abs/2304.10465",
        "Lin et al., ICCV 2019, https://arxiv.org/abs/1811.08383",
    )
    place = "before_attention"
    identity_at_init = False

    def __init__(self, config: ShiftConfig, block: BlockInfo):
        """Raises ValueError where the fraction is less than one channel of the block's width."""
        super().__init__(config, block)
        self.channels = int(config.fraction * block.width)
        if self.channels < 1:
            raise InputError(
                f"shift: fraction={config.fraction} of the tower's width {block.width} is less than one channel; "
                f"choose at least {1 / block.width:.3g}"
            )

    def forward(self, tokens: Tensor, grid: tuple[int, int], trace: bool = False) -> AdapterOutput:
        num_prefix = split_prefix(tokens, grid)[0].shape[2]
        if self.config.tokens == "prefix" and num_prefix == 0:
            raise InputError("shift: tokens='prefix', but this tower has no prefix tokens; use tokens='patches'")
        first = num_prefix if self.config.tokens == "patches" else 0
        last = num_prefix if self.config.tokens == "prefix" else tokens.shape[2]
        shifted = tokens[:, :, first:last, : 2 * self.channels]
        before, after = shifted.chunk(2, dim=-1)
        neighbours = torch.cat([F.pad(before[:, :-1], FIRST_FRAME), F.pad(after[:, 1:], LAST_FRAME)], dim=-1)
        around = (0, tokens.shape[3] - shifted.shape[3], first, tokens.shape[2] - last)
        return AdapterOutput(F.pad(neighbours - shifted, around))
