"""Animated WebP files, which FFmpeg does not decode."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import BinaryIO

import numpy as np
from PIL import Image

from clipvid.decoding.errors import VideoError
from clipvid.decoding.files import opened_binary
from clipvid.decoding.frame_times import rate_varies
from clipvid.decoding.frames import picture_of
from clipvid.decoding.limits import Clock, Limits
from clipvid.decoding.timed_video import TimedVideo

HEAD_BYTES = 21
_HAS_ANIMATION = 0x02
_MAX_BYTES = 256 << 20  # Pillow reads the whole file
# Browsers show frames of at most 10 ms for 100 ms.
_SHORTEST, _DEFAULT = 10, 100


def is_animated_webp(head: bytes) -> bool:
    """Return True if a file whose first `HEAD_BYTES` are `head` is a WebP file with an animation."""
    is_extended = head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) >= HEAD_BYTES
    return is_extended and bool(head[20] & _HAS_ANIMATION)


class AnimatedWebp(TimedVideo):
    """Frames of an animated WebP file, decoded by Pillow, with the interface of `clipvid.data.reader.Video`.

    Args:
        name: Name in messages.
        source: Path, or content.

    Raises:
        VideoError: The file is damaged or exceeds the limits.
    """

    backend = "pillow"

    def __init__(self, name: str, source: str | bytes) -> None:
        self.name, self._source = name, source
        with self._opened() as (image, durations):
            count = getattr(image, "n_frames", 1)
            if count != len(durations):
                raise VideoError(name, f"it is damaged: it declares {len(durations)} frames and contains {count}")
        shown = [duration if duration > _SHORTEST else _DEFAULT for duration in durations]
        self._ends = [end / 1000 for end in accumulate(shown)]

    @property
    def fps(self) -> float:
        """Average frame rate."""
        return len(self) / self._ends[-1]

    @property
    def times(self) -> list[float]:
        """Presentation times of the frames in seconds."""
        return [0.0, *self._ends[:-1]]

    @property
    def duration(self) -> float:
        """Seconds that one pass of the animation takes."""
        return self._ends[-1]

    @property
    def has_varying_rate(self) -> bool:
        """See `clipvid.data.reader.Video`."""
        return rate_varies([*self.times, self.duration])

    def __len__(self) -> int:
        return len(self._ends)

    def pictures(self, indices: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield number and frame of sorted indices as arrays, see `clipvid.data.reader.Video.frames`."""
        needed = set(indices)
        clock = Clock(Limits.current().max_seconds)
        with self._opened() as (image, _):
            for index in range(max(needed) + 1):
                clock.check()
                image.seek(index)
                image.load()
                if index in needed:
                    yield index, picture_of(image)

    @contextmanager
    def _opened(self) -> Iterator[tuple[Image.Image, list[int]]]:
        """Yield the image and the durations of its frames in ms, after the checks against the limits."""
        limits = Limits.current()
        try:
            with opened_binary(self._source) as file:
                durations = _durations(file, limits)
                file.seek(0)
                with Image.open(file, formats=("WEBP",)) as image:
                    limits.check_size(*image.size)
                    yield image, durations
        except (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError) as error:
            raise VideoError(self.name, f"not a readable animation ({error})") from None


def _durations(file: BinaryIO, limits: Limits) -> list[int]:
    """Return the durations in ms that the frames declare, found without decoding.

    Raises:
        ValueError: The file is too long, or declares no frame or too many.
    """
    end, place, durations = file.seek(0, os.SEEK_END), 12, list[int]()
    if end > _MAX_BYTES:
        raise ValueError(f"it has {end:,} bytes; at most {_MAX_BYTES:,} are read")
    clock = Clock(limits.max_seconds)
    while place + 8 <= end:
        clock.check()
        file.seek(place)
        head = file.read(24)
        size = int.from_bytes(head[4:8], "little")
        if head[:4] == b"ANMF":
            limits.check_frames(len(durations) + 1)
            durations.append(int.from_bytes(head[20:23], "little"))
        place += 8 + size + size % 2
    if not durations:
        raise ValueError("it has no frame")
    return durations
