"""Interface of videos whose frames have times."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Self

import numpy as np

from clipvid.decoding.errors import VideoError
from clipvid.decoding.pictures import reduced

if TYPE_CHECKING:
    from torch import Tensor


class TimedVideo:
    """Base class of videos: frames, parts and times. A context manager. A subclass implements `pictures`.

    Attributes:
        name: Name in messages.
    """

    name: str

    def __len__(self) -> int:
        raise NotImplementedError

    @property
    def fps(self) -> float | None:
        """Average frame rate, or None if unknown."""
        raise NotImplementedError

    @property
    def times(self) -> list[float] | None:
        """Presentation times of the frames in seconds from the first, or None if unknown."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the file."""

    def read(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Read the frames at `indices` (any order, repeats allowed): uint8 [T, H, W, 3] RGB.

        Raises:
            IndexError: An index is outside [0, len).
            InputError: There are no indices.
            VideoError: No frame can be decoded.
        """
        from clipvid.decoding.tensors import read_frames_at

        return read_frames_at(self.name, indices, len(self), self.frames)

    def frames(self, indices: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """Yield number and frame uint8 [H, W, 3] of sorted indices without repeats, in order, each decoded once.

        Raises:
            VideoError: No frame can be decoded.
        """
        from clipvid.decoding.tensors import as_tensors

        return as_tensors(self.pictures(indices))

    def pictures(self, indices: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield what `frames` does, as arrays."""
        raise NotImplementedError

    def reduced_pictures(
        self, indices: Sequence[int], longest: int, full: Collection[int]
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:
        """Yield number, small picture and full picture of sorted indices without repeats, each decoded once.

        Args:
            indices: Numbers of frames.
            longest: Most pixels of a side of a small picture.
            full: Numbers whose full picture is needed too. It is None for others.

        Raises:
            VideoError: No frame can be decoded.
        """
        for index, picture in self.pictures(indices):
            yield index, reduced(picture, longest), picture if index in full else None

    @property
    def duration(self) -> float | None:
        """Seconds from the first frame to the end of the last, which lasts as long as the one before it."""
        if self.times is None:
            return None
        last = self.times[-1] - self.times[-2] if len(self) > 1 else 1 / (self.fps or 1.0)
        return self.times[-1] + last

    def frame_times(self, part: range) -> list[float] | None:
        """Return when each frame of a part appears and when the last one ends, in seconds; None if unknown."""
        times, duration = self.times, self.duration
        if times is None or duration is None:
            return None
        return [*times[part.start : part.stop], times[part.stop] if part.stop < len(times) else duration]

    def frames_between(self, start: float | None, end: float | None) -> range:
        """Return the frames shown from `start` to before `end`, in seconds from the first frame, at least one.

        None means the start or end of the video. Without a frame in between, return the frame shown at `start`.

        Raises:
            VideoError: The video ends before `start`, or has no times.
        """
        if start is None and end is None:
            return range(len(self))
        times, begin = self.times, start or 0.0
        if times is None:
            raise VideoError(self.name, f"it has no times; {start} to {end} seconds cannot be selected")
        interval = times[-1] / (len(times) - 1) if len(times) > 1 else 1 / (self.fps or 1.0)
        finish = max(times[-1] + interval, self.duration or 0.0)
        if begin >= finish:
            raise VideoError(self.name, f"it ends after {finish:.2f} s, before its part from {begin:.2f} s")
        # Times in files are rounded: allow a tolerance of a tenth of a frame.
        first = bisect_left(times, begin - interval / 10)
        last = len(times) if end is None else bisect_left(times, end - interval / 10)
        shown = max(bisect_right(times, begin) - 1, 0)
        return range(first, last) if first < last else range(shown, shown + 1)
