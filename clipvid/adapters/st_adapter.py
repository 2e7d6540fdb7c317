"""ST-Adapter (Pan et al., NeurIPS 2022, https://arxiv.org/abs/2206.13559).

Known from the paper [paper]: two linears form a bottleneck with a depthwise 3-D convolution and a residual around it,
with 384 channels for ViT-B. Our choice [construction]: the place before the spatial attention, no nonlinearity, a
zero-initialized up-projection, the bottleneck width of other towers, and no update of prefix tokens.

Shapes: B clips, T frames, P prefix tokens, N = H x W patches, D width, C bottleneck channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from clipvid import InputError
from clipvid.adapters.base import Adapter, AdapterConfig, AdapterOutput, BlockInfo, split_prefix, zero_init

PAPER_CHANNELS = 384


@dataclass(frozen=True)
class STAdapterConfig(AdapterConfig):
    """Options of ST-Adapter.

    Attributes:
        channels: C of the bottleneck. By default 384 or half of the tower's width, whichever is less.
        kernel_size: Size of the convolution, [frames, rows, columns], each odd.
    """

    channels: int | None = None
    kernel_size: Sequence[int] = (3, 1, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels is not None and self.channels < 1:
            raise InputError(f"st_adapter: channels={self.channels} must be at least 1, or unset")
        if not _is_kernel(self.kernel_size):
            raise InputError(
                f"st_adapter: kernel_size={self.kernel_size!r} must be three odd sizes, [frames, rows, columns]"
            )
        object.__setattr__(self, "kernel_size", tuple(self.kernel_size))


class STAdapter(Adapter):
    """Adapter of one block, `up(conv(down(patches)))`, zero at initialization; the update of prefix tokens is 0.

    The clip is padded with zeros on all sides, after the down-projection. The trace holds `response` [B, T, H, W], the
    norm of every patch's update.
    """

    Config = STAdapterConfig
    papers = ("Pan et al., NeurIPS 2022, https://arxiv.org/abs/2206.13559",)
    place = "before_attention"

    def __init__(self, config: STAdapterConfig, block: BlockInfo):
        super().__init__(config, block)
        channels = config.channels or min(PAPER_CHANNELS, max(1, block.width // 2))
        frames, rows, columns = config.kernel_size
        padding = (frames // 2, rows // 2, columns // 2)
        self.down = nn.Linear(block.width, channels)
        self.conv = nn.Conv3d(channels, channels, (frames, rows, columns), padding=padding, groups=channels)
        self.up = zero_init(nn.Linear(channels, block.width))

    def forward(self, tokens: Tensor, grid: tuple[int, int], trace: bool = False) -> AdapterOutput:
        """Return the update of the tokens; see `Adapter.forward`."""
        prefix, patches = split_prefix(tokens, grid)
        update = self.up(self._convolve(self.down(patches), grid))
        seen = {"response": update.detach().norm(dim=-1).unflatten(2, grid)} if trace else None
        return AdapterOutput(F.pad(update, (0, 0, prefix.shape[2], 0)), trace=seen)

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
