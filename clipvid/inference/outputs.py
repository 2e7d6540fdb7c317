"""Types of what a predictor returns.

Shapes: K classes, W windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

from torch import Tensor

from clipvid.data.reader import VideoError


class LabelScore(TypedDict):
    """Class name and its probability."""

    label: str
    score: float


@dataclass(frozen=True)
class VideoPrediction:
    """Result for one of many videos.

    Attributes:
        source: The video, as it was passed.
        predictions: Best classes, best first. Empty if the video cannot be read.
        scores: Probabilities [K], or None if the video cannot be read.
        error: Reason, if the video cannot be read.
    """

    source: Any
    predictions: list[LabelScore]
    scores: Tensor | None
    error: VideoError | None = None


class TimelinePoint(NamedTuple):
    """Scores of one window.

    Attributes:
        time: Center of the window, in seconds.
        scores: Probabilities [K].
    """

    time: float
    scores: Tensor


class Timeline(NamedTuple):
    """Scores over time.

    Attributes:
        times: W centers of the windows, in seconds.
        scores: [W, K].
    """

    times: list[float]
    scores: Tensor
