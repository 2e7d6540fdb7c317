"""Small gray pictures of a clip's frames, from which copies are found, and the facts that show a poor clip.

Shapes: S frames of a signature, h x w pixels of a reduced frame, P pixels of a side of a signature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

SIDE = 16  # pixels of a signature
REDUCED = 96  # pixels of the longer side of a reduced frame
_LUMA = (0.299, 0.587, 0.114)
_BLACK = 24.0  # gray value that no pixel of a bar exceeds in any frame
_PICTURE = 60.0  # gray value that the brightest place between bars exceeds
_LEAST_BAR = 0.03  # share of a side; less is a dark edge
_MOST_BARS = 0.8  # share of a side; more is a dark clip


@dataclass(frozen=True)
class ClipFacts:
    """Facts of a readable clip.

    Attributes:
        frames: Number of frames of the part that is used.
        fps: Average frame rate, or None if unknown.
        seconds: Duration, or None if unknown.
        varying_rate: True if the frame rate varies by more than a factor of two.
        width: Width of a frame in pixels.
        height: Height of a frame in pixels.
        bars: Shares of the frame that are black bars: top, bottom, left, right.
        motion: Mean change of a pixel over the clip, in gray values from 0 to 255.
        brightness: Mean gray value, 0 to 255.
    """

    frames: int
    fps: float | None
    seconds: float | None
    varying_rate: bool
    width: int
    height: int
    bars: tuple[float, float, float, float]
    motion: float
    brightness: float

    def record(self) -> dict[str, Any]:
        """Return the facts as JSON."""
        return asdict(self)


def gray(frames: Tensor) -> Tensor:
    """Return reduced frames uint8 [S, h, w, 3] in gray, float32 [S, h, w]."""
    return frames.float() @ torch.tensor(_LUMA)


def find_bars(frames: Tensor) -> tuple[int, int, int, int]:
    """Return the rows and columns that are black in all reduced frames [S, h, w]: top, bottom, left, right.

    All are 0 for a clip that is dark as a whole.
    """
    brightest = frames.amax(dim=0)
    bars: list[int] = []
    for lines in (brightest.amax(dim=1), brightest.amax(dim=0)):
        bright = (lines > _BLACK).nonzero().flatten().tolist()
        if not bright:
            return 0, 0, 0, 0
        own = (bright[0], len(lines) - 1 - bright[-1])
        bars += [bar if bar >= _LEAST_BAR * len(lines) else 0 for bar in own]
    top, bottom, left, right = bars
    height, width = brightest.shape
    if top + bottom > _MOST_BARS * height or left + right > _MOST_BARS * width or float(brightest.max()) < _PICTURE:
        return 0, 0, 0, 0
    return top, bottom, left, right


def signature_of(frames: Tensor, bars: Sequence[int]) -> Tensor:
    """Return what is between the bars of reduced frames [S, h, w], stretched to squares: uint8 [S, P, P]."""
    top, bottom, left, right = bars
    height, width = frames.shape[1:]
    # The first line inside of a bar mixes both.
    edges = [top + (top > 0), height - bottom - (bottom > 0), left + (left > 0), width - right - (right > 0)]
    inner = (
        frames[:, edges[0] : edges[1], edges[2] : edges[3]] if edges[0] < edges[1] and edges[2] < edges[3] else frames
    )
    small = interpolate(inner[:, None], (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)[:, 0]
    return small.round().clamp(0, 255).to(torch.uint8)


def motion_of(frames: Tensor) -> float:
    """Return the mean standard deviation of a pixel over the reduced frames [S, h, w]."""
    return float((frames - frames.mean(dim=0)).square().mean(dim=0).sqrt().mean())
