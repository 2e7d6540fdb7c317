"""Frames of a camera or stream with their times.

Shapes: H, W size of a frame.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipvid import InputError
from clipvid.decoding.pictures import PictureMaker
from clipvid.inference.videos import FramesInMemory


def timed_frames(frames: Iterable[Any], fps: float | None) -> Iterator[tuple[float, Tensor]]:
    """Yield time in seconds and pixels uint8 [H, W, 3] of frames, see `Predictor.live`.

    Raises:
        InputError: An object is not a frame, or a frame of PyAV has no time.
    """
    picture = PictureMaker(None)
    for number, item in enumerate(frames):
        seconds, frame = item if isinstance(item, tuple) and len(item) == 2 else (None, item)
        if isinstance(frame, av.VideoFrame):
            seconds = frame.time if seconds is None and fps is None else seconds
            if seconds is None and fps is None:
                raise InputError("a frame of PyAV has no time; pass fps, or pairs of seconds and frame")
            pixels = torch.from_numpy(np.ascontiguousarray(picture(frame)))
        else:
            pixels = _pixels(frame)
        if seconds is None:
            seconds = time.monotonic() if fps is None else number / fps
        yield float(seconds), pixels


def _pixels(frame: Any) -> Tensor:
    if isinstance(frame, Image.Image):
        return torch.from_numpy(np.array(frame.convert("RGB")))
    if not isinstance(frame, np.ndarray | Tensor) or frame.ndim != 3:
        raise InputError(
            f"a frame is of type {type(frame).__name__}; expected uint8 [H, W, 3] or [3, H, W], a PIL image, a frame "
            "of PyAV, or a pair of seconds and one of these"
        )
    return FramesInMemory(frame[None]).pixels[0]
