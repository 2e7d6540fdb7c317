"""Videos in any form: paths, URLs, bytes, file objects, frames in memory, and lists of these."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipvid import InputError
from clipvid.inference.opening import open_file

_EXPECTED = (
    "expected a path, a URL, bytes, a file object, frames uint8 [T, H, W, 3] or [T, 3, H, W] (RGB), or a list of "
    "frames (PIL images, or arrays of one size)"
)


class Frames(Protocol):
    """Source of frames: a `clipvid.data.reader.Video`, or an object with its method `frames`."""

    def __len__(self) -> int: ...

    def frames(self, indices: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """Yield number and frame uint8 [H, W, 3] of sorted indices without repeats, in order."""

    def frame_times(self, part: range) -> list[float] | None:
        """Return when each frame of a part appears and when the last one ends, in seconds; None if unknown."""


class FramesInMemory:
    """Frames uint8 [T, H, W, 3] in memory, with the interface of a video. Their rate is unknown.

    Raises:
        InputError: The frames have another type or shape.
    """

    fps = None
    name = "frames in memory"
    has_varying_rate = False

    def __init__(self, frames: np.ndarray | Tensor):
        self.pixels = torch.as_tensor(frames)
        shape = tuple(self.pixels.shape)
        if len(shape) == 4 and shape[-1] != 3 and shape[1] == 3:
            self.pixels = self.pixels.movedim(1, -1)
        if len(shape) != 4 or self.pixels.shape[-1] != 3 or self.pixels.dtype != torch.uint8:
            raise InputError(
                f"frames are {self.pixels.dtype} {list(shape)}; expected uint8 [N, H, W, 3] or [N, 3, H, W] (RGB)"
            )
        if not self.pixels.numel():
            raise InputError(f"frames are {list(shape)}: expected at least one frame")

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, indices: Tensor) -> Tensor:
        """Return the frames uint8 [T, H, W, 3] at `indices`."""
        return self.pixels[indices]

    def frames(self, indices: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """Yield number and frame of sorted indices."""
        for index in indices:
            yield index, self.pixels[index]

    def frame_times(self, part: range) -> None:
        """Return None: the frames have no times, and count as evenly spaced."""


def split_videos(videos: Any) -> tuple[list[Any], bool]:
    """Return the videos in `videos`, and True if it is a list of videos instead of one video."""
    if isinstance(videos, list | tuple):
        if videos and all(_is_frame(item) for item in videos):
            return [videos], False
        return list(videos), True
    if isinstance(videos, np.ndarray | Tensor) and videos.ndim == 5:
        return list(videos), True
    return [videos], False


@contextmanager
def open_source(source: Any) -> Iterator[Any]:
    """Open a video of any kind, see `clipvid.Predictor`. Yields `Frames` with `fps` and `name`.

    Raises:
        InputError: The object is not a video.
        VideoError: The video cannot be read.
    """
    if isinstance(source, list | tuple) and source and all(_is_frame(item) for item in source):
        yield FramesInMemory(_stack(source))
    elif _is_frame(source):
        raise InputError("a single image is not a video; pass the frames of a video as one list")
    elif isinstance(source, np.ndarray | Tensor):
        yield FramesInMemory(source)
    elif not isinstance(source, str | PathLike | bytes) and not hasattr(source, "read"):
        raise InputError(f"a video is of type {type(source).__name__}; {_EXPECTED}")
    else:
        with open_file(source) as video:
            yield video


def _is_frame(item: Any) -> bool:
    """Return True for one image: a PIL image, or an array with a height, a width and a color axis."""
    return isinstance(item, Image.Image) or (isinstance(item, np.ndarray | Tensor) and item.ndim == 3)


def _stack(frames: list[Any] | tuple[Any, ...]) -> Tensor:
    arrays = [
        torch.from_numpy(np.array(frame.convert("RGB"))) if isinstance(frame, Image.Image) else torch.as_tensor(frame)
        for frame in frames
    ]
    shapes = {(tuple(array.shape), array.dtype) for array in arrays}
    if len(shapes) > 1:
        sizes = ", ".join(sorted(str(list(shape)) for shape, _ in shapes)[:3])
        raise InputError(f"the frames of a video have different sizes or types ({sizes}); expected one of each")
    return torch.stack(arrays)
