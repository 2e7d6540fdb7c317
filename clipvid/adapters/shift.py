"""Token shift, which takes some channels of every frame from adjacent frames. No parameters, almost no cost.

ILA's paper compares with the baseline "temporal shift" on CLIP (https://arxiv.org/abs/2304.10465) [paper]. The channel
shift itself is from TSM (Lin et al., ICCV 2019, https://arxiv.org/abs/1811.08383). Our choice [construction]: the place
in the block, shifting the residual stream, and the default tokens.

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

    Attributes:
        fraction: Share of channels taken from the previous frame, and again from the next one, in (0, 0.5]. Rounded
            down to whole channels.
        tokens: Tokens to shift, `patches`, `prefix` (such as the class token) or `both`.
    """

    fraction: float = 0.125
    tokens: Literal["patches", "prefix", "both"] = "patches"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option("shift", "tokens", self.tokens, ("patches", "prefix", "both"))
        if not 0 < self.fraction <= 0.5:
            raise InputError(f"shift: fraction={self.fraction} must be in (0, 0.5]")


class Shift(Adapter):
    """Shift of the residual stream before the block's spatial attention.

    The first channels come from the previous frame, the same number after them from the next frame. The others stay.
    The ends of the clip are padded with zeros, so these channels of a single frame become 0. The update is the shifted
    stream minus the stream. The trace is empty.
    """

    Config = ShiftConfig
    papers = (
        "Tu et al., ICCV 2023, https://arxiv.org/abs/2304.10465",
        "Lin et al., ICCV 2019, https://arxiv.org/abs/1811.08383",
    )
    place = "before_attention"
    identity_at_init = False

    def __init__(self, config: ShiftConfig, block: BlockInfo):
        """Compute the number of shifted channels.

        Raises:
            InputError: The fraction is less than one channel of the block's width.
        """
        super().__init__(config, block)
        self.channels = int(config.fraction * block.width)
        if self.channels < 1:
            raise InputError(
                f"shift: fraction={config.fraction} of the tower's width {block.width} is less than one channel; "
                f"choose at least {1 / block.width:.3g}"
            )

    def forward(self, tokens: Tensor, grid: tuple[int, int], trace: bool = False) -> AdapterOutput:
        """Return the update of the tokens; see `Adapter.forward`."""
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
