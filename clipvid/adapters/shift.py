"""Token shift, which takes some channels of every frame from adjacent frames. No parameters, almost no cost.

ILA's paper compares with the baseline "temporal shift" on CLIP (https://arxiv.org/abs/2304.10465). The channel shift
itself is from TSM (Lin et al., ICCV 2019, https://arxiv.org/abs/1811.08383).

Known from the code of ILA's authors: every block gets a shifted stream, so that its residual is shifted, too. Only
patches are shifted. An eighth of the channels comes from the next frame, and the eighth after it from the previous one.
The ends are zeros. Our choice: the options.

Shapes: B clips, T frames, P prefix tokens, N = H x W patches, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clipvid import InputError
from clipvid.adapters.base import (
    Adapter,
    AdapterConfig,
    AdapterOutput,
    BlockInfo,
    from_next,
    from_previous,
    split_prefix,
)
from clipvid.registry import check_option


@dataclass(frozen=True)
class ShiftConfig(AdapterConfig):
    """Options of the token shift.

    Attributes:
        fraction: Share of channels taken from the previous frame, and again from the next one, in (0, 0.5]. Rounded
            down to whole channels.
        tokens: Tokens to shift, `patches`, `prefix` (such as the class token) or `both`.
        order: Source of the first shifted channels, `next_first` (the authors') or `previous_first`.
    """

    former: ClassVar[Mapping[str, Any]] = {"order": "previous_first"}

    fraction: float = 0.125
    tokens: Literal["patches", "prefix", "both"] = "patches"
    order: Literal["next_first", "previous_first"] = "next_first"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option("shift", "tokens", self.tokens, ("patches", "prefix", "both"))
        check_option("shift", "order", self.order, ("next_first", "previous_first"))
        if not 0 < self.fraction <= 0.5:
            raise InputError(f"shift: fraction={self.fraction} must be in (0, 0.5]")


class Shift(Adapter):
    """Shift of the residual stream before the block's spatial attention.

    The first channels come from the next frame, the same number after them from the previous frame; see `order`. The
    others stay. The ends of the clip are padded with zeros, so these channels of a single frame become 0. The update is
    the shifted stream minus the stream. The trace is empty.
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
        first_half, second_half = shifted.chunk(2, dim=-1)
        if self.config.order == "next_first":
            moved = [from_next(first_half), from_previous(second_half)]
        else:
            moved = [from_previous(first_half), from_next(second_half)]
        neighbours = torch.cat(moved, dim=-1)
        around = (0, tokens.shape[3] - shifted.shape[3], first, tokens.shape[2] - last)
        return AdapterOutput(F.pad(neighbours - shifted, around))
