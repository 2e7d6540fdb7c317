"""Normalization of pixels with the mean and standard deviation of a CLIP tower.

Shapes: B clips, T frames, S image side.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipvid import InputError

SLACK = 0.2  # share of the range from black to white, since bicubic resizing overshoots


def normalize(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return uint8 pixels [..., 3, S, S] as normalized floats; mean and std [3, 1, 1] are on the scale 0..1."""
    # ONNX divides integers without a remainder, hence the cast.
    return ((pixels.float() / 255 - mean) / std).to(mean.dtype)


@torch.no_grad()
def check_normalized(frames: Tensor, mean: Tensor, std: Tensor) -> None:
    """Refuse floats that cannot be normalized pixels. Skipped inside `torch.compile` and on the meta device.

    Args:
        frames: Floats [B, T, 3, S, S].
        mean: [3, 1, 1], in 0..1.
        std: [3, 1, 1], in 0..1.

    Raises:
        InputError: A channel has values below black or above white, or all values are in 0..1.
    """
    if torch.compiler.is_compiling() or frames.is_meta or not frames.numel():
        return
    low, high = frames.amin(dim=(0, 1, 3, 4)), frames.amax(dim=(0, 1, 3, 4))
    black, white = ((level - mean.flatten()) / std.flatten() for level in (-SLACK, 1 + SLACK))
    outside = ((low < black) | (high > white)).any()
    scaled = (low >= 0).all() & (high <= 1).all()
    if outside | scaled:
        raise InputError(
            f"frames are floats from {float(low.min()):.3g} to {float(high.max()):.3g}, which are not pixels "
            f"normalized with mean {_rounded(mean)} and std {_rounded(std)}: pass uint8 pixels (0..255), or floats "
            "from `model.normalize`. If these frames are normalized, pass normalized=True"
        )


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 3) for value in values.flatten().tolist()]
