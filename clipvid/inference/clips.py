"""Clips of a video as a model's evaluation reads them.

Shapes: V views, T frames, S image side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clipvid.data.preprocessing import Preprocessing
from clipvid.data.sampling import FrameSampling
from clipvid.data.transforms import Transform
from clipvid.inference.videos import Frames


@dataclass(frozen=True)
class ClipReader:
    """Sampling and resizing of a model's clips, as in its evaluation. Frames are resized as they are decoded."""

    sampling: FrameSampling
    transform: Transform

    @classmethod
    def create(cls, num_frames: int, image_size: int, preprocessing: Preprocessing | None) -> ClipReader:
        """Build the reader of a model's clips. Without `preprocessing`, use the defaults."""
        chosen = preprocessing or Preprocessing()
        return cls(chosen.frame_sampling(num_frames), chosen.transform(image_size))

    def ignores_varying_rate(self, video: Any) -> bool:
        """Return True if frames are sampled by number although the frame rate of the video varies."""
        return self.sampling.ignores_time and bool(video.has_varying_rate)

    def read(self, video: Frames, views: int = 1, start: int = 0, stop: int | None = None) -> Tensor:
        """Read clips from the frames [start, stop) of a video, spread in time: uint8 [V, T, 3, S, S]."""
        return self.read_at(video, self.indices(video, views, start, stop))

    def indices(self, video: Frames, views: int = 1, start: int = 0, stop: int | None = None) -> Tensor:
        """Return the frame numbers [V, T] of clips from the frames [start, stop) of a video, spread in time."""
        part = range(start, len(video) if stop is None else stop)
        times = video.frame_times(part) if self.sampling.by == "time" else None
        drawn = [self.sampling.indices(len(part), times, clip=view, num_clips=views) for view in range(views)]
        return start + torch.stack(drawn)

    def read_at(self, video: Frames, indices: Tensor) -> Tensor:
        """Read the frames of a video at `indices` [V, T]: uint8 [V, T, 3, S, S]."""
        shown, rows = indices.unique(return_inverse=True)
        resized = [self.resize(frame) for _, frame in video.frames(shown.tolist())]
        return torch.stack(resized)[rows]

    def resize(self, frame: Tensor) -> Tensor:
        """Return a frame uint8 [H, W, 3] as the model takes it: uint8 [3, S, S]."""
        return self.transform(frame.permute(2, 0, 1)[None])[0]
