"""Features of the windows of many videos. Worker processes read, this process runs the model.

Shapes: W windows, E embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from clipvid import InputError
from clipvid.data.loader import worker_options
from clipvid.data.reader import VideoError
from clipvid.inference.clips import ClipReader
from clipvid.inference.shared_frames import SharedFrames
from clipvid.inference.videos import open_source
from clipvid.inference.window_frames import WindowGroup, read_windows
from clipvid.model.video_clip import VideoCLIP


@dataclass(frozen=True)
class VideoFeatures:
    """Windows of one video.

    Attributes:
        times: Start and end of each window in seconds from the first frame, float64 [W, 2].
        features: L2-normalized video features, float16 [W, E].
    """

    times: np.ndarray
    features: np.ndarray


class WindowEncoder:
    """Model with the reading of its clips, for windows of `window` seconds, `hop` seconds apart."""

    def __init__(self, model: VideoCLIP, window: float, hop: float) -> None:
        self.model, self.window, self.hop = model, window, hop
        self.reader = ClipReader.create(model.num_frames, model.image_size, model.preprocessing)

    def encode(self, sources: Sequence[Any], num_workers: int = 0) -> Iterator[tuple[int, VideoFeatures | VideoError]]:
        """Yield the number and the features of each video, or the reason that it cannot be read.

        With several workers, short videos come before long ones that started earlier. The features of a video do not
        depend on the others. Memory is bounded by the frames of some windows of each worker.

        Raises:
            InputError: An object is not a video.
        """
        dataset = _WindowGroups(self.reader, sources, self.window, self.hop)
        workers = min(num_workers, len(sources))
        loader: DataLoader[Any] = DataLoader(dataset, batch_size=None, collate_fn=_unchanged, **worker_options(workers))
        unfinished: dict[int, _Unfinished] = {}
        for number, item in loader:
            if isinstance(item, WindowGroup):
                unfinished.setdefault(number, _Unfinished(SharedFrames(self.model))).add(item)
            elif isinstance(item, VideoError):
                unfinished.pop(number, None)
                yield number, item
            elif isinstance(item, InputError):
                raise item
            else:
                yield number, unfinished.pop(number).result(item)


@dataclass
class _Unfinished:
    """Video of which some windows are encoded."""

    shared: SharedFrames
    times: list[tuple[float, float]] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)

    def add(self, group: WindowGroup) -> None:
        self.shared.add_group(group)
        self.times += [(window.start, window.end) for window in group.windows]
        self.features.append(normalized(self.shared.features([window.frames for window in group.windows])).half())
        self.shared.forget_before(group.first_needed)

    def result(self, name: str) -> VideoFeatures | VideoError:
        features = torch.cat(self.features)
        if not features.isfinite().all():
            return VideoError(name, "the model returned features that are not finite")
        return VideoFeatures(np.array(self.times, dtype=np.float64), features.numpy())


class _WindowGroups(IterableDataset[tuple[int, Any]]):
    """Number of a video with its groups of windows, then with its name; or with an error.

    Each worker reads whole videos.
    """

    def __init__(self, reader: ClipReader, sources: Sequence[Any], window: float, hop: float) -> None:
        self.reader, self.sources, self.window, self.hop = reader, sources, window, hop

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for number in range(first, len(self.sources), step):
            try:
                with open_source(self.sources[number]) as video:
                    for group in read_windows(self.reader, video, self.window, self.hop):
                        yield number, group
                    yield number, video.name
            except (VideoError, InputError) as error:
                yield number, error


def normalized(features: Tensor) -> Tensor:
    """Return features [W, E] of length 1."""
    return F.normalize(features, dim=-1)


def _unchanged(item: Any) -> Any:
    return item
