"""Data of an explanation: relevance, importance of frames and order, marks of adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from clipvid.adapters.marks import Mark
from clipvid.inference.explain.target import Target
from clipvid.inference.explain.time import TimeEffects


@dataclass(frozen=True)
class AdapterMarks:
    """Marks of the adapter `name` in block `block`, counted from 0."""

    name: str
    block: int
    marks: Sequence[Mark]


@dataclass(frozen=True)
class Reasons:
    """Reasons of an answer, as numbers. Shapes: T frames, H x W patches, S image side, K classes.

    Attributes:
        name: Name of the video.
        frames: uint8 [T, 3, S, S], as the model sees them.
        times: T times of the frames in seconds, or None if unknown.
        labels: K class names.
        probabilities: [K].
        target: Explained class, and the class it is compared with.
        method: Name of the method and its options.
        relevance: [T, H, W], relevance of each patch in each frame for the target. At least 0, sums to 1.
        time: Importance of frames and order, or None if it was not measured.
        adapters: Marks of the adapters, in the order of the blocks.
    """

    name: str
    frames: Tensor
    times: list[float] | None
    labels: list[str]
    probabilities: Tensor
    target: Target
    method: Mapping[str, Any]
    relevance: Tensor
    time: TimeEffects | None
    adapters: Sequence[AdapterMarks]

    @property
    def label(self) -> str:
        """Name of the explained class."""
        return self.labels[self.target.label]

    @property
    def against(self) -> str | None:
        """Name of the class that the explained one is compared with, or None for all others."""
        return None if self.target.against is None else self.labels[self.target.against]

    @property
    def frame_names(self) -> list[str]:
        """Time of each frame as text, or its number if times are unknown."""
        if self.times is None:
            return [f"frame {number}" for number in range(1, len(self.frames) + 1)]
        return [f"{time:.2f} s" for time in self.times]
