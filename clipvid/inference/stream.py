"""Clips of many videos, read by worker processes and returned in order.

Shapes: B readable videos of a batch, V views, T frames, S image side.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clipvid import InputError
from clipvid.data.loader import worker_options
from clipvid.data.reader import VideoError
from clipvid.inference.clips import ClipReader
from clipvid.inference.videos import open_source


@dataclass(frozen=True)
class VideoFacts:
    """Outcome of reading one video.

    Attributes:
        name: Name in messages.
        ignores_varying_rate: See `ClipReader.ignores_varying_rate`.
        error: Reason, if it cannot be read.
        not_a_video: Message about an object that is not a video.
    """

    name: str
    ignores_varying_rate: bool = False
    error: VideoError | None = None
    not_a_video: str | None = None


@dataclass(frozen=True)
class ClipBatch:
    """Clips of some videos.

    Attributes:
        sources: The videos, as they were passed.
        videos: Outcome of each.
        clips: uint8 [B, V, T, 3, S, S] of those that can be read, or None.
    """

    sources: list[Any]
    videos: list[VideoFacts]
    clips: Tensor | None


def read_clips(
    reader: ClipReader, views: int, sources: Iterable[Any], videos_at_once: int, num_workers: int
) -> Iterator[ClipBatch]:
    """Yield batches of the clips of videos, in order. Each worker reads at most two batches ahead.

    Raises:
        InputError: An object is not a video.
    """
    batches = _Batches(sources, videos_at_once)
    loader: DataLoader[Any] = DataLoader(
        _SourceClips(reader, views), batch_sampler=batches, collate_fn=_collate, **worker_options(num_workers)
    )
    for videos, clips in loader:
        for video in videos:
            if video.not_a_video is not None:
                raise InputError(video.not_a_video)
        yield ClipBatch(batches.in_flight.popleft(), videos, clips)


class _Batches:
    """Keys for the loader: the videos themselves. `in_flight` are the batches that were not returned yet."""

    def __init__(self, sources: Iterable[Any], size: int) -> None:
        self.sources, self.size = sources, size
        self.in_flight: deque[list[Any]] = deque()

    def __iter__(self) -> Iterator[list[Any]]:
        sources = iter(self.sources)
        while batch := list(islice(sources, self.size)):
            self.in_flight.append(batch)
            yield [_content(source) for source in batch]


class _SourceClips(Dataset[tuple[VideoFacts, Tensor | None]]):
    """Clips of a video by the video itself."""

    def __init__(self, reader: ClipReader, views: int) -> None:
        self.reader, self.views = reader, views

    def __getitem__(self, source: Any) -> tuple[VideoFacts, Tensor | None]:
        try:
            with open_source(source) as video:
                facts = VideoFacts(video.name, self.reader.ignores_varying_rate(video))
                return facts, self.reader.read(video, self.views)
        except VideoError as error:
            return VideoFacts(error.path, error=error), None
        except InputError as error:
            return VideoFacts("", not_a_video=str(error)), None


def _collate(items: list[tuple[VideoFacts, Tensor | None]]) -> tuple[list[VideoFacts], Tensor | None]:
    clips = [clip for _, clip in items if clip is not None]
    return [video for video, _ in items], torch.stack(clips) if clips else None


def _content(source: Any) -> Any:
    """Return the bytes of a file object, which another process cannot read, and other videos unchanged."""
    if not hasattr(source, "read"):
        return source
    if source.seekable():
        source.seek(0)
    return source.read()
