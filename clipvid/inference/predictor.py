"""From videos to scores, one video at a time: how a model's clips are taken, and what the model says of them.

Shapes: V views, T frames, S image side, K classes, W windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypedDict

import torch
from torch import Tensor

from clipvid import InputError
from clipvid.data.preprocessing import Preprocessing
from clipvid.data.reader import Source, VideoError, open_video
from clipvid.data.sampling import FrameSampling
from clipvid.data.transforms import Transform
from clipvid.model.video_clip import VideoCLIP

_WINDOWS_AT_ONCE = 8


class Prediction(TypedDict):
    """A class name and its probability."""

    label: str
    score: float


class Timeline(NamedTuple):
    """Scores over time. times: W centres of the windows, in seconds. scores: [W, K]."""

    times: list[float]
    scores: Tensor


class Frames(Protocol):
    """What clips are taken from: a `clipvid.data.reader.Video`, or what reads like one."""

    def __len__(self) -> int: ...

    def read(self, indices: Tensor) -> Tensor:
        """uint8 [T, H, W, 3] at `indices`."""


@dataclass(frozen=True)
class ClipReader:
    """Which frames a model sees of a video, and how they are resized: those of its evaluation."""

    sampling: FrameSampling
    transform: Transform

    @classmethod
    def create(cls, num_frames: int, image_size: int, preprocessing: Preprocessing | None) -> ClipReader:
        """Build the reader of a model's clips; without `preprocessing`, with its defaults."""
        chosen = preprocessing or Preprocessing()
        return cls(chosen.frame_sampling(num_frames), chosen.transform(image_size))

    def read(self, video: Frames, views: int = 1, start: int = 0, stop: int | None = None) -> Tensor:
        """Clips of the frames [start, stop) of a video, spread in time: uint8 [V, T, 3, S, S]."""
        total = (len(video) if stop is None else stop) - start
        indices = torch.stack([self.sampling.indices(total, clip=view, num_clips=views) for view in range(views)])
        frames = video.read(start + indices.flatten()).permute(0, 3, 1, 2)
        return torch.stack([self.transform(clip) for clip in frames.split(self.sampling.num_frames)])


class Predictor:
    """Scores that a model gives to videos.

    model: in evaluation mode, with labels. views: clips per video, whose probabilities are averaged.

    Raises:
        ValueError: a model without labels, or no view.
    """

    def __init__(self, model: VideoCLIP, views: int = 1):
        if not model.labels:
            raise InputError("the model has no labels: name the classes (set_labels([...]), --labels)")
        if views < 1:
            raise InputError(f"views={views}: a video is seen at least once")
        self.model, self.views = model, views
        self.reader = ClipReader.create(model.num_frames, model.image_size, model.preprocessing)

    def __call__(self, source: Source, top_k: int = 5) -> list[Prediction]:
        """The `top_k` classes of a video (a path, bytes or a file object), best first.

        Raises:
            VideoError: the video cannot be read.
        """
        scores, classes = self.scores(source).topk(min(top_k, len(self.model.labels)))
        return [
            {"label": self.model.labels[index], "score": score}
            for score, index in zip(scores.tolist(), classes.tolist(), strict=True)
        ]

    def scores(self, source: Source) -> Tensor:
        """Probabilities [K] of a video, on the CPU."""
        with open_video(source) as video:
            clips = self.reader.read(video, self.views)
        return self._probabilities(clips).mean(dim=0)

    def timeline(self, source: Source, window: float, hop: float) -> Timeline:
        """Scores of windows of `window` seconds, `hop` seconds apart; the last one ends with the video.

        Raises:
            ValueError: a window or hop that is not positive.
            VideoError: the video cannot be read, or its frame rate is unknown.
        """
        if window <= 0 or hop <= 0:
            raise InputError(f"window={window}, hop={hop}: expected seconds above 0")
        with open_video(source) as video:
            if video.fps is None:
                raise VideoError(video.name, "its frame rate is unknown, so windows in seconds cannot be laid over it")
            size = min(max(round(window * video.fps), 1), len(video))
            starts = list(range(0, len(video) - size, max(round(hop * video.fps), 1)))
            starts.append(len(video) - size)
            scores = []
            for first in range(0, len(starts), _WINDOWS_AT_ONCE):
                batch = starts[first : first + _WINDOWS_AT_ONCE]
                clips = torch.cat([self.reader.read(video, start=start, stop=start + size) for start in batch])
                scores.append(self._probabilities(clips))
            times = [(start + size / 2) / video.fps for start in starts]
        return Timeline(times, torch.cat(scores))

    @torch.no_grad()
    def _probabilities(self, clips: Tensor) -> Tensor:
        """Clips [B, T, 3, S, S] -> [B, K] on the CPU."""
        logits = self.model(clips.to(self.model.pixel_mean.device)).logits
        return logits.float().softmax(dim=-1).cpu()
