"""Windows of seconds over frames that arrive in order, and the frames that a model sees of each.

Shapes: W windows, T frames.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from torch import Tensor

from clipvid import InputError
from clipvid.data.sampling import FrameSampling

# Times in files are rounded, to 1 ms in some.
_TOLERANCE = 0.001


class Window(NamedTuple):
    """One window.

    Attributes:
        start: Seconds from the first frame.
        end: Seconds, at most the end of the video if that is known.
        frames: Numbers of the frames that the model sees, int64 [T], monotone.
    """

    start: float
    end: float
    frames: Tensor

    @property
    def center(self) -> float:
        """Middle of the window, in seconds from the first frame."""
        return (self.start + self.end) / 2


class WindowCutter:
    """Windows of `length` seconds, `hop` seconds apart, over frames whose times are known one by one.

    A window contains the frames that appear in it, or the frame on screen if there are none. The last window ends with
    the video. Only frames of the current window are remembered.

    Args:
        sampling: Sampling of a clip from the frames of a window.
        length: Seconds.
        hop: Seconds.
    """

    def __init__(self, sampling: FrameSampling, length: float, hop: float) -> None:
        self.sampling, self.length, self.hop = sampling, length, hop
        self._times: list[float] = []
        self._first = self._number = 0  # number of the first remembered frame, and of the next window
        self._tolerance = _TOLERANCE

    @property
    def first_frame(self) -> int:
        """Number of the first frame that later windows may contain."""
        return self._first

    def add(self, time: float) -> Iterator[Window]:
        """Add a frame, and yield the windows that end before it.

        Args:
            time: Seconds from the first frame, whose time is 0.

        Raises:
            InputError: The time is not after that of the frame before.
        """
        if self._times and not time > self._times[-1]:
            raise InputError(f"a frame at {time:.3f} s follows one at {self._times[-1]:.3f} s; times must increase")
        if self._first == 0 and len(self._times) == 1:
            self._tolerance = min(_TOLERANCE, time / 10)
        self._times.append(time)
        while (start := self._number * self.hop) + self.length - self._tolerance <= time:
            yield self._cut(start, None)
            self._number += 1
        # Later windows, and the last one at any later time, start after this.
        self._forget(time - self.length)

    def finish(self, duration: float | None = None) -> Iterator[Window]:
        """Yield the windows up to the end.

        Args:
            duration: End of the last frame. None if it lasts as long as the one before it.
        """
        if not self._times:
            return
        if duration is None:
            gap = self._times[-1] - self._times[-2] if len(self._times) > 1 else 1.0
            duration = self._times[-1] + gap
        last = max(duration - self.length, 0.0)
        while (start := self._number * self.hop) < last - 1e-6 * self.hop:
            yield self._cut(start, duration)
            self._number += 1
        yield self._cut(last, duration)

    def _cut(self, start: float, duration: float | None) -> Window:
        times, end = self._times, start + self.length
        first = bisect_left(times, start - self._tolerance)
        stop = bisect_left(times, end - self._tolerance)
        if first >= stop:
            first = max(bisect_right(times, start) - 1, 0)
            stop = first + 1
        edges = None
        if self.sampling.by == "time":
            edges = [*times[first:stop], times[stop] if stop < len(times) else duration or end]
        frames = self._first + first + self.sampling.indices(stop - first, edges)
        return Window(start, min(end, end if duration is None else duration), frames)

    def _forget(self, start: float) -> None:
        """Forget the frames before the one on screen at `start`."""
        shown = max(bisect_right(self._times, start - self._tolerance) - 1, 0)
        del self._times[:shown]
        self._first += shown


def cut_windows(
    times: Iterable[float], duration: float, sampling: FrameSampling, length: float, hop: float
) -> Iterator[Window]:
    """Yield the windows over frames of known times, see `WindowCutter`."""
    cutter = WindowCutter(sampling, length, hop)
    for time in times:
        yield from cutter.add(time)
    yield from cutter.finish(duration)
