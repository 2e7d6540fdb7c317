"""Types of what a predictor returns.

Shapes: K classes, W windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from clipvid.data.reader import VideoError
from clipvid.files import json_text

if TYPE_CHECKING:
    from torch import Tensor


class LabelScore(TypedDict):
    """Class name and its probability."""

    label: str
    score: float


@dataclass(frozen=True)
class VideoPrediction:
    """Result for one of many videos.

    Attributes:
        source: The video, as it was passed.
        predictions: Best classes, best first. Empty if the video cannot be read, or no class reaches a threshold.
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


def prediction_line(name: str, predictions: list[LabelScore], ascii_only: bool = False) -> str:
    """Return the JSON line of a video."""
    return json_text({"video": name, "predictions": predictions}, ascii_only=ascii_only)
