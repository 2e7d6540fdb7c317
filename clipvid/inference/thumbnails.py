"""Small frames of a video, side by side in one picture that a page plays."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from clipvid.data.sampling import uniform_indices
from clipvid.evaluation.clips import data_uri


def small_frames(video: Any, part: range, most: int, height: int, widest: int) -> list[Image.Image]:
    """Return small frames that are spread over a part of an open video.

    Args:
        video: The video, see `clipvid.data.reader.open_video`.
        part: Numbers of its frames.
        most: Largest number of frames.
        height: Largest height in pixels.
        widest: Largest width in pixels.

    Raises:
        VideoError: The frames cannot be read.
    """
    numbers = (part.start + uniform_indices(len(part), min(most, len(part)))).unique().tolist()
    pictures = [Image.fromarray(frame.numpy()) for _, frame in video.frames(numbers)]
    width, own_height = pictures[0].size
    scale = min(height / own_height, widest / width)
    size = max(round(width * scale), 1), max(round(own_height * scale), 1)
    return [picture.resize(size, Image.Resampling.LANCZOS) for picture in pictures]


def strip_uri(pictures: Sequence[Image.Image]) -> str:
    """Return pictures of one size side by side as a `data:` address."""
    width, height = pictures[0].size
    strip, target = Image.new("RGB", (width * len(pictures), height)), io.BytesIO()
    for place, picture in enumerate(pictures):
        strip.paste(picture, (place * width, 0))
    strip.save(target, format="JPEG", quality=82)
    return data_uri(target.getvalue(), "jpeg")
