"""Classification of single videos: sampling of clips, and the scores of a model.

Shapes: V views, T frames, S image side, K classes, W windows.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict, overload

import torch
from torch import Tensor

from clipvid import InputError
from clipvid.data.preprocessing import Preprocessing
from clipvid.data.reader import Source, VideoError, open_video
from clipvid.data.sampling import FrameSampling
from clipvid.data.transforms import Transform
from clipvid.inference.videos import Frames, open_source, split_videos
from clipvid.model.video_clip import VideoCLIP

_WINDOWS_AT_ONCE = 8


class LabelScore(TypedDict):
    """Class name and its probability."""

    label: str
    score: float


class Timeline(NamedTuple):
    """Scores over time.

    Attributes:
        times: W centers of the windows, in seconds.
        scores: [W, K].
    """

    times: list[float]
    scores: Tensor


@dataclass(frozen=True)
class ClipReader:
    """Sampling and resizing of a model's clips, as in its evaluation."""

    sampling: FrameSampling
    transform: Transform

    @classmethod
    def create(cls, num_frames: int, image_size: int, preprocessing: Preprocessing | None) -> ClipReader:
        """Build the reader of a model's clips. Without `preprocessing`, use the defaults."""
        chosen = preprocessing or Preprocessing()
        return cls(chosen.frame_sampling(num_frames), chosen.transform(image_size))

    def read(self, video: Frames, views: int = 1, start: int = 0, stop: int | None = None) -> Tensor:
        """Read clips from the frames [start, stop) of a video, spread in time: uint8 [V, T, 3, S, S]."""
        part = range(start, len(video) if stop is None else stop)
        times = video.frame_times(part) if self.sampling.by == "time" else None
        drawn = [self.sampling.indices(len(part), times, clip=view, num_clips=views) for view in range(views)]
        indices = torch.stack(drawn)
        frames = video.read(start + indices.flatten()).permute(0, 3, 1, 2)
        return torch.stack([self.transform(clip) for clip in frames.split(self.sampling.num_frames)])


class Predictor:
    """Classifier of videos.

    A video is one of the following:
    - a path, a `file://` or web URL, the bytes of a file, a file object or a folder of images
    - frames in memory, uint8 [T, H, W, 3] or [T, 3, H, W]
    - a list of frames, PIL images or arrays of one size

    Args:
        model: Model in evaluation mode, with labels.
        views: Clips per video, whose probabilities are averaged.

    Raises:
        InputError: The model has no labels, or `views` is less than 1.
    """

    def __init__(self, model: VideoCLIP, views: int = 1):
        if not model.labels:
            raise InputError("the model has no labels; set them (set_labels([...]), --labels)")
        if views < 1:
            raise InputError(f"views={views} must be at least 1")
        self.model, self.views = model, views
        self.reader = ClipReader.create(model.num_frames, model.image_size, model.preprocessing)

    @overload
    def __call__(self, source: list[Source], top_k: int = 5) -> list[list[LabelScore]]: ...

    @overload
    def __call__(self, source: Any, top_k: int = 5) -> list[LabelScore]: ...

    def __call__(self, source: Any, top_k: int = 5) -> list[LabelScore] | list[list[LabelScore]]:
        """Return the `top_k` classes of a video, best first, or such a list for each video of a list.

        Raises:
            InputError: The object is not a video.
            VideoError: The video cannot be read.
        """
        videos, several = split_videos(source)
        predictions = [self._best(self.scores(video), top_k) for video in videos]
        return predictions if several else predictions[0]

    def scores(self, source: Any) -> Tensor:
        """Return the probabilities [K] of a video, on the CPU; see `__call__` for errors."""
        with open_source(source) as video:
            if self.reader.sampling.ignores_time and video.has_varying_rate:
                warnings.warn(
                    f"{video.name}: its frame rate varies by more than 2x, and frames are sampled evenly by number, "
                    "not by time; a timeline (--timeline) samples by time, and so does a model that was trained with "
                    "data.sampling='{name: uniform, by: time}'",
                    stacklevel=2,
                )
            clips = self.reader.read(video, self.views)
        return self._probabilities(clips).mean(dim=0)

    def _best(self, scores: Tensor, top_k: int) -> list[LabelScore]:
        values, classes = scores.topk(min(top_k, len(self.model.labels)))
        return [
            {"label": self.model.labels[index], "score": score}
            for score, index in zip(values.tolist(), classes.tolist(), strict=True)
        ]

    def timeline(
        self, source: Source, window: float, hop: float, on_progress: Callable[[int, int], None] | None = None
    ) -> Timeline:
        """Return the scores of windows of `window` seconds, `hop` seconds apart. The last one ends with the video.

        Windows are defined on presentation times, so they are right for varying frame rates. A window without frames
        shows the current frame.

        Args:
            source: a path, the bytes of a file, or a file object.
            window: seconds that a point sees.
            hop: seconds between points.
            on_progress: called with the number of windows that are scored, and of all.

        Raises:
            InputError: `window` or `hop` is not positive.
            VideoError: The video cannot be read, or the times of its frames are unknown.
        """
        if not (0 < window < math.inf and 0 < hop < math.inf):
            raise InputError(f"window={window}, hop={hop}: expected seconds above 0")
        with open_video(source) as video:
            duration = video.duration
            if duration is None:
                raise VideoError(video.name, "its frame rate is unknown, so windows in seconds are not defined")
            last = max(duration - window, 0.0)
            step = max(hop, duration / len(video))  # not more windows than frames
            starts = [*(step * number for number in range(math.ceil(last / step - 1e-6))), last]
            scores = []
            for first in range(0, len(starts), _WINDOWS_AT_ONCE):
                parts = [
                    video.frames_between(start, start + window) for start in starts[first : first + _WINDOWS_AT_ONCE]
                ]
                clips = torch.cat([self.reader.read(video, start=part.start, stop=part.stop) for part in parts])
                scores.append(self._probabilities(clips))
                if on_progress is not None:
                    on_progress(first + len(parts), len(starts))
        times = [start + min(window, duration) / 2 for start in starts]
        return Timeline(times, torch.cat(scores))

    @torch.no_grad()
    def _probabilities(self, clips: Tensor) -> Tensor:
        """Return probabilities [B, K] of clips [B, T, 3, S, S], on the CPU."""
        logits = self.model(clips.to(self.model.pixel_mean.device)).logits
        return logits.float().softmax(dim=-1).cpu()
