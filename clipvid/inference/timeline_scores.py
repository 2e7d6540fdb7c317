"""Scores of windows of a video file or of a stream of frames.

Shapes: H, W size of a frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor

from clipvid import InputError
from clipvid.inference.clips import ClipReader
from clipvid.inference.outputs import TimelinePoint
from clipvid.inference.shared_frames import SharedFrames
from clipvid.inference.videos import open_source
from clipvid.inference.window_frames import read_windows
from clipvid.inference.windows import Window, WindowCutter
from clipvid.model.video_clip import VideoCLIP

_SHORTEST_HOP = 0.001  # of a stream, whose frame rate is unknown


def timeline_points(
    model: VideoCLIP,
    reader: ClipReader,
    source: Any,
    length: float,
    hop: float,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[TimelinePoint]:
    """Yield the scores of the windows of a video while it is read, see `clipvid.Predictor.timeline`.

    Raises:
        VideoError: The video cannot be read, or the times of its frames are unknown.
    """
    shared, done = SharedFrames(model), 0
    with open_source(source) as video:
        for group in read_windows(reader, video, length, hop):
            shared.add_group(group)
            scores, done = shared.score([window.frames for window in group.windows]), done + len(group.windows)
            if on_progress is not None:
                on_progress(done, group.total)
            yield from map(TimelinePoint, (window.center for window in group.windows), scores)
            shared.forget_before(group.first_needed)


def live_points(
    model: VideoCLIP, reader: ClipReader, frames: Iterable[tuple[float, Tensor]], length: float, hop: float
) -> Iterator[TimelinePoint]:
    """Yield the scores of the windows of a stream, see `clipvid.Predictor.live`.

    Args:
        model: Model in evaluation mode.
        reader: Reader of the model's clips.
        frames: Pairs of seconds and frame uint8 [H, W, 3].
        length: Seconds of a window.
        hop: Seconds between windows.

    Raises:
        InputError: Times do not increase.
    """
    cutter, shared, begin = WindowCutter(reader.sampling, length, hop), SharedFrames(model), None

    def point(window: Window) -> TimelinePoint:
        return TimelinePoint((begin or 0.0) + window.center, shared.score([window.frames])[0])

    for number, (seconds, frame) in enumerate(frames):
        begin = seconds if begin is None else begin
        yield from map(point, cutter.add(seconds - begin))
        shared.add(number, reader.resize(frame))
        shared.forget_before(cutter.first_frame)
    yield from map(point, cutter.finish())


def check_seconds(length: float, hop: float, is_live: bool = False) -> None:
    """Raise InputError unless window and hop are seconds above 0."""
    if not (0 < length < math.inf and 0 < hop < math.inf):
        raise InputError(f"window={length}, hop={hop}: expected seconds above 0")
    if is_live and hop < _SHORTEST_HOP:
        raise InputError(f"hop={hop}: expected at least {_SHORTEST_HOP} s")
