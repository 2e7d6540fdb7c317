"""Generated videos whose frames show their numbers as black and white fields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from clipvid.files import replacing

RATE, BITS = 25, 8


@dataclass(frozen=True)
class Encoding:
    """Encoding of a generated video.

    Attributes:
        codec: Encoder of FFmpeg.
        size: Width and height.
        options: Options of the encoder.
    """

    codec: str
    size: tuple[int, int] = (320, 240)
    options: dict[str, str] = field(default_factory=dict)


def write_numbered(path: Path, times: Sequence[Fraction], encoding: Encoding) -> None:
    """Write a video whose frames show their numbers at these times in seconds, unless it exists."""
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = encoding.size
    noise = np.random.default_rng(0).integers(96, 160, (height, width, 3), dtype=np.uint8)
    with replacing(path) as aside, av.open(str(aside), "w", format="mp4") as container:
        stream: Any = container.add_stream(encoding.codec, rate=RATE, options=dict(encoding.options))
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = width, height, "yuv420p", 1
        stream.codec_context.time_base = Fraction(1, 600)
        for number, moment in enumerate(times):
            frame = av.VideoFrame.from_ndarray(_numbered(noise, number), format="rgb24")
            frame.pts, frame.time_base = int(moment * 600), Fraction(1, 600)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _numbered(noise: np.ndarray, number: int) -> np.ndarray:
    """Draw the binary digits of the number as fields in the upper half."""
    picture = np.roll(noise, 2 * number, axis=1)
    wide = picture.shape[1] // BITS
    for bit in range(BITS):
        picture[: picture.shape[0] // 2, bit * wide : (bit + 1) * wide] = 235 if number >> bit & 1 else 16
    return picture


def number_of(picture: np.ndarray) -> int:
    """Return the number that a frame shows."""
    wide = picture.shape[1] // BITS
    fields = (picture[: picture.shape[0] // 2, bit * wide : (bit + 1) * wide] for bit in range(BITS))
    return sum(1 << bit for bit, part in enumerate(fields) if part.mean() > 128)
