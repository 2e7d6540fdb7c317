"""Classification of single videos: sampling of clips, and the scores of a model.

Shapes: V views, T frames, S image side, K classes, W windows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, overload

import torch
from torch import Tensor

from clipvid import InputError
from clipvid.data.reader import Source
from clipvid.inference.clips import ClipReader as ClipReader
from clipvid.inference.live import timed_frames
from clipvid.inference.outputs import LabelScore as LabelScore
from clipvid.inference.outputs import Timeline as Timeline
from clipvid.inference.outputs import TimelinePoint as TimelinePoint
from clipvid.inference.outputs import VideoPrediction as VideoPrediction
from clipvid.inference.stream import read_clips
from clipvid.inference.timeline_scores import check_seconds, live_points, timeline_points
from clipvid.inference.varying_rate import warn_of_varying_rate
from clipvid.inference.videos import open_source, split_videos
from clipvid.model.video_clip import VideoCLIP


class Predictor:
    """Classifier of videos.

    A video is one of the following:
    - a path, a `file://` or web URL, the bytes of a file, a file object or a folder of images
    - frames in memory, uint8 [T, H, W, 3] or [T, 3, H, W]
    - a list of frames, PIL images or arrays of one size

    Args:
        model: Model in evaluation mode, with labels.
        views: Clips per video, whose probabilities are averaged.
        threshold: Lowest probability of a class that is listed, or None to list any class.

    Raises:
        InputError: The model has no labels, or an option is out of range.
    """

    def __init__(self, model: VideoCLIP, views: int = 1, threshold: float | None = None):
        if not model.labels:
            raise InputError("the model has no labels; set them (set_labels([...]), --labels)")
        if views < 1:
            raise InputError(f"views={views} must be at least 1")
        if threshold is not None and not 0 < threshold <= 1:
            raise InputError(f"threshold={threshold}: expected a probability above 0 and at most 1")
        self.model, self.views, self.threshold = model, views, threshold
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
            if self.reader.ignores_varying_rate(video):
                warn_of_varying_rate(video.name)
            clips = self.reader.read(video, self.views)
        return self._probabilities(clips).mean(dim=0)

    def stream(
        self, sources: Iterable[Any], top_k: int = 5, batch_size: int = 8, num_workers: int = 2
    ) -> Iterator[VideoPrediction]:
        """Yield the predictions of many videos, in order, while worker processes read the next ones.

        Scores equal those of a single video up to rounding: the order of sums in a batch may differ. A video that
        cannot be read has an `error` instead of predictions. Memory does not grow with the number of videos.

        Args:
            sources: Videos, see the class. An iterator is read as far as needed.
            top_k: Classes per video.
            batch_size: Clips in one pass of the model, at least those of one video.
            num_workers: Reading processes. 0 to read in this process.

        Raises:
            InputError: An option is out of range, or an object is not a video.
        """
        for name, value, least in (("top_k", top_k, 1), ("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
            if value < least:
                raise InputError(f"{name}={value}: expected at least {least}")
        videos_at_once = max(batch_size // self.views, 1)
        for batch in read_clips(self.reader, self.views, sources, videos_at_once, num_workers):
            scores: Iterator[Tensor] = iter(())
            if batch.clips is not None:
                probabilities = self._probabilities(batch.clips.flatten(0, 1))
                scores = iter(probabilities.unflatten(0, (-1, self.views)).mean(dim=1))
            for source, video in zip(batch.sources, batch.videos, strict=True):
                if video.ignores_varying_rate:
                    warn_of_varying_rate(video.name)
                if video.error is not None:
                    yield VideoPrediction(source, [], None, video.error)
                else:
                    own = next(scores)
                    yield VideoPrediction(source, self._best(own, top_k), own)

    def _best(self, scores: Tensor, top_k: int) -> list[LabelScore]:
        values, classes = scores.topk(min(top_k, len(self.model.labels)))
        return [
            {"label": self.model.labels[index], "score": score}
            for score, index in zip(values.tolist(), classes.tolist(), strict=True)
            if self.threshold is None or score >= self.threshold
        ]

    def timeline(
        self, source: Any, window: float, hop: float, on_progress: Callable[[int, int], None] | None = None
    ) -> Timeline:
        """Return the scores of windows of `window` seconds, `hop` seconds apart. The last one ends with the video.

        Windows are defined on presentation times, so they are right for varying frame rates. A window without frames
        shows the current frame. Each frame is decoded once, and encoded once up to the first adapter.

        Args:
            source: A video with times, see the class.
            window: Seconds that a point sees.
            hop: Seconds between points.
            on_progress: Called with the number of windows that are scored, and of all.

        Raises:
            InputError: `window` or `hop` is not positive.
            VideoError: The video cannot be read, or the times of its frames are unknown.
        """
        points = list(self.iter_timeline(source, window, hop, on_progress))
        return Timeline([point.time for point in points], torch.stack([point.scores for point in points]))

    def iter_timeline(
        self, source: Any, window: float, hop: float, on_progress: Callable[[int, int], None] | None = None
    ) -> Iterator[TimelinePoint]:
        """Yield the points of `timeline` while the video is read. Memory is bounded by the frames of some windows."""
        check_seconds(window, hop)
        return timeline_points(self.model, self.reader, source, window, hop, on_progress)

    def live(
        self, frames: Iterable[Any], window: float, hop: float, fps: float | None = None
    ) -> Iterator[TimelinePoint]:
        """Yield the scores of each window of a camera or stream, as soon as a frame after the window has arrived.

        The scores are those of `timeline` for the same frames and times, if `hop` is not shorter than a frame. The last
        window ends with the last frame.

        Args:
            frames: Frames uint8 [H, W, 3] or [3, H, W], PIL images or frames of PyAV; or pairs of seconds and frame.
            window: Seconds that a point sees.
            hop: Seconds between points.
            fps: Frames per second, for frames without times. By default these have the time at which they arrive.

        Raises:
            InputError: An option is out of range, an object is not a frame, or times do not increase.
        """
        check_seconds(window, hop, is_live=True)
        if fps is not None and not 0 < fps < math.inf:
            raise InputError(f"fps={fps}: expected a number above 0")
        return live_points(self.model, self.reader, timed_frames(frames, fps), window, hop)

    @torch.no_grad()
    def _probabilities(self, clips: Tensor) -> Tensor:
        """Return probabilities [B, K] of clips [B, T, 3, S, S], on the CPU."""
        logits = self.model(clips.to(self.model.pixel_mean.device)).logits
        return self.model.probabilities(logits).cpu()
