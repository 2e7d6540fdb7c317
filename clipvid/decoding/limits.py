"""Limits on the cost of a video file, checked before and during decoding."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, fields

from clipvid import InputError

# Resizing a picture with a larger aspect ratio would create a strip of millions of pixels.
MAX_ASPECT = 50


@dataclass(frozen=True)
class Limits:
    """Largest video that is read. Environment variables override the defaults and apply to worker processes too.

    Args:
        max_pixels: Pixels of a frame, as stored and as shown (`CLIPVID_MAX_PIXELS`).
        max_frames: Frames of a video, declared or counted (`CLIPVID_MAX_FRAMES`).
        max_seconds: Processor time to open a file, and again for each read (`CLIPVID_MAX_SECONDS`).
    """

    max_pixels: int = 8192 * 4320
    max_frames: int = 1_000_000
    max_seconds: int = 600

    @classmethod
    def current(cls) -> Limits:
        """Return the defaults with the values of the environment.

        Raises:
            InputError: A variable is not a positive integer.
        """
        values = {}
        for option in fields(cls):
            variable = f"CLIPVID_{option.name.upper()}"
            text = os.environ.get(variable)
            if text is None:
                continue
            if not (text.isascii() and text.isdigit() and len(text) <= 15 and int(text) > 0):
                raise InputError(f"{variable}={text[:40]!r}: expected a positive integer")
            values[option.name] = int(text)
        return cls(**values)

    def check_size(self, width: int, height: int) -> None:
        """Raise InputError for frames with too many pixels or a side ratio above `MAX_ASPECT`."""
        if width * height > self.max_pixels:
            raise InputError(
                f"its frames are {width}x{height}; at most {self.max_pixels:,} pixels are read (CLIPVID_MAX_PIXELS)"
            )
        if max(width, height) > MAX_ASPECT * max(min(width, height), 1):
            raise InputError(f"its frames are {width}x{height}: one side is over {MAX_ASPECT} times the other")

    def check_frames(self, count: int) -> None:
        """Raise InputError for more frames than `max_frames`."""
        if count > self.max_frames:
            raise InputError(f"it declares {count:,} frames; at most {self.max_frames:,} are read (CLIPVID_MAX_FRAMES)")


@dataclass
class Clock:
    """Processor time of this thread since creation. Waiting for a slow disk does not count."""

    max_seconds: int
    _start: float = field(default_factory=time.thread_time)

    def check(self) -> None:
        """Raise InputError if the time is exceeded."""
        if time.thread_time() - self._start > self.max_seconds:
            raise InputError(f"it takes more than {self.max_seconds} s to read (CLIPVID_MAX_SECONDS)")
