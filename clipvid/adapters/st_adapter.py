"""ST-Adapter (Pan et al., NeurIPS 2022, https://arxiv.org/abs/2206.13559).

Known from the authors' code: two linears with a depthwise 3-D convolution of 3 x 1 x 1 between them, no nonlinearity,
384 channels for ViT-B. The convolution and all biases start at zero, the linears as torch initializes them. Prefix
tokens are not updated. On Kinetics-400 the adapter sits before the MLP of every block; on Something-Something v2 there
is one before the attention, too. Our choice: the bottleneck width of towers narrower than 768.

Shapes: B clips, T frames, P prefix tokens, N = H x W patches, D width, C bottleneck channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from clipvid import InputError
from clipvid.adapters.base import Adapter, AdapterConfig, AdapterOutput, BlockInfo, Place, split_prefix, zero_init
from clipvid.adapters.marks import HeatMap, Mark
from clipvid.registry import check_option

PAPER_CHANNELS = 384
PLACES: dict[str, tuple[Place, ...]] = {
    "before_mlp": ("after_attention",),
    "before_attention": ("before_attention",),
    "both": ("before_attention", "after_attention"),
}


@dataclass(frozen=True)
class STAdapterConfig(AdapterConfig):
    """Options of ST-Adapter.

    Attributes:
        channels: C of the bottleneck. By default 384 or half of the tower's width, whichever is less.
        kernel_size: Size of the convolution, [frames, rows, columns], each odd.
        place: Place in the block, `before_mlp` (the authors' on Kinetics-400), `before_attention`, or `both` with an
            adapter at each (theirs on Something-Something v2).
    """

    former: ClassVar[Mapping[str, Any]] = {"place": "before_attention"}

    channels: int | None = None
    kernel_size: Sequence[int] = (3, 1, 1)
    place: Literal["before_mlp", "before_attention", "both"] = "before_mlp"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels is not None and self.channels < 1:
            raise InputError(f"st_adapter: channels={self.channels} must be at least 1, or unset")
        if not _is_kernel(self.kernel_size):
            raise InputError(
                f"st_adapter: kernel_size={self.kernel_size!r} must be three odd sizes, [frames, rows, columns]"
            )
        check_option("st_adapter", "place", self.place, tuple(PLACES))
        object.__setattr__(self, "kernel_size", tuple(self.kernel_size))


class STAdapter(Adapter):
    """Adapter of one place, `up(conv(down(patches)))`, zero at initialization; the update of prefix tokens is 0.

    The clip is padded with zeros on all sides, after the down-projection. The trace holds `response` [B, T, H, W], the
    norm of every patch's update. `place: both` makes two of these, named `st_adapter` and `st_adapter_before_mlp`.
    """

    Config = STAdapterConfig
    papers = ("Pan et al., NeurIPS 2022, https://arxiv.org/abs/2206.13559",)
    updates_prefix = False

    def __init__(self, config: STAdapterConfig, block: BlockInfo, place: Place | None = None):
        """Build the adapter for `place`, or for the first place of the config."""
        super().__init__(config, block)
        self.place = place or PLACES[config.place][0]
        channels = config.channels or min(PAPER_CHANNELS, max(1, block.width // 2))
        frames, rows, columns = config.kernel_size
        padding = (frames // 2, rows // 2, columns // 2)
        self.down = nn.Linear(block.width, channels)
        self.conv = zero_init(nn.Conv3d(channels, channels, (frames, rows, columns), padding=padding, groups=channels))
        self.up = nn.Linear(channels, block.width)
        for linear in (self.down, self.up):
            nn.init.zeros_(linear.bias)

    @classmethod
    def build(cls, name: str, config: STAdapterConfig, block: BlockInfo) -> dict[str, Adapter]:
        """Build the adapters of one block, see `Adapter.build`."""
        first, *more = PLACES[config.place]
        adapters: dict[str, Adapter] = {name: cls(config, block, first)}
        return adapters | {f"{name}_before_mlp": cls(config, block, place) for place in more}

    def forward(self, tokens: Tensor, grid: tuple[int, int], trace: bool = False) -> AdapterOutput:
        """Return the update of the tokens; see `Adapter.forward`."""
        prefix, patches = split_prefix(tokens, grid)
        update = self.up(self._convolve(self.down(patches), grid))
        seen = {"response": update.detach().norm(dim=-1).unflatten(2, grid)} if trace else None
        return AdapterOutput(F.pad(update, (0, 0, prefix.shape[2], 0)), trace=seen)

    def draw_trace(self, trace: dict[str, Tensor], grid: tuple[int, int]) -> list[Mark]:
        """Return the size of the update; see `Adapter.draw_trace`."""
        note = "Size of the change that the convolution over time makes to each patch."
        return [HeatMap("response", note, trace["response"][0].float())]

    def _convolve(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Convolve [B, T, N, C]. A kernel of one patch runs as a 2-D one over (T, N), which is many times faster."""
        maps = patches.permute(0, 3, 1, 2)
        if self.conv.kernel_size[1:] == (1, 1):
            weight, bias, padding = self.conv.weight.squeeze(-1), self.conv.bias, self.conv.padding[:2]
            maps = F.conv2d(maps, weight, bias, padding=padding, groups=self.conv.groups)
        else:
            maps = self.conv(maps.unflatten(-1, grid)).flatten(-2)
        return maps.permute(0, 2, 3, 1)


def _is_kernel(sizes: object) -> bool:
    """Return True if `sizes` are three odd positive integers."""
    if not isinstance(sizes, Sequence) or isinstance(sizes, str) or len(sizes) != 3:
        return False
    return all(isinstance(size, int) and size > 0 and size % 2 for size in sizes)
