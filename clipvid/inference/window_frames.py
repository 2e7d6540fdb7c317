"""Windows of a video with their frames, read in order. Each frame is decoded and resized once.

Shapes: F frames, S image side.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipvid.data.reader import VideoError
from clipvid.inference.clips import ClipReader
from clipvid.inference.windows import Window, cut_windows

WINDOWS_AT_ONCE = 8


class WindowGroup(NamedTuple):
    """Consecutive windows, and their frames that no earlier group has.

    Attributes:
        windows: At most `WINDOWS_AT_ONCE`.
        numbers: Numbers of the frames.
        frames: uint8 [F, 3, S, S].
        first_needed: Later groups need no frame with a lower number.
        total: Number of windows of the video.
    """

    windows: list[Window]
    numbers: list[int]
    frames: Tensor
    first_needed: int
    total: int


def read_windows(reader: ClipReader, video: Any, length: float, hop: float) -> Iterator[WindowGroup]:
    """Yield the windows of an open video in groups, as soon as their frames are read.

    A hop that is shorter than a frame counts as the mean time of a frame.

    Args:
        reader: Reader of the model's clips.
        video: See `open_source`.
        length: Seconds of a window.
        hop: Seconds between windows.

    Raises:
        VideoError: A frame cannot be read, or the times of the frames are unknown.
    """
    duration = getattr(video, "duration", None)
    if duration is None:
        raise VideoError(video.name, "its frame rate is unknown, so windows in seconds are not defined")
    step = max(hop, duration / len(video))
    windows = list(cut_windows(video.times, duration, reader.sampling, length, step))
    waiting, group = deque(windows), list[Window]()
    numbers, frames = list[int](), list[Tensor]()
    for number, frame in video.frames(torch.cat([window.frames for window in windows]).unique().tolist()):
        numbers.append(number)
        frames.append(reader.resize(frame))
        while waiting and waiting[0].frames[-1] <= number:
            group.append(waiting.popleft())
            if waiting and len(group) < WINDOWS_AT_ONCE:
                continue
            needed = int(waiting[0].frames[0]) if waiting else number + 1
            pixels = torch.stack(frames) if frames else torch.empty(0)
            yield WindowGroup(group, numbers, pixels, needed, len(windows))
            group, numbers, frames = [], [], []
