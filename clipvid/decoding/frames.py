"""Folders of images as videos."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from clipvid import InputError
from clipvid.decoding.errors import VideoError
from clipvid.decoding.files import open_regular
from clipvid.decoding.limits import Limits
from clipvid.decoding.pictures import over_black, reduced

if TYPE_CHECKING:
    from torch import Tensor

# Formats that Pillow decodes internally. For others, such as EPS, it starts external programs.
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM")
_ANIMATED = ("PNG", "WEBP", "TIFF")
IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"))


class FrameFolder:
    """Images of a folder in the order of the numbers in their names (`img_2.jpg` before `img_10.jpg`).

    Has the interface of `clipvid.data.reader.Video`.

    Raises:
        VideoError: The folder contains no image, or more than the limit.
    """

    backend = "images"
    fps: float | None = None
    duration: float | None = None
    has_varying_rate = False

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.name = os.fspath(folder)
        try:
            images = [path for path in Path(folder).iterdir() if is_image(path)]
        except OSError as error:
            raise VideoError(self.name, f"cannot list the folder ({error.strerror})") from None
        self.files = sorted(images, key=_natural)
        if not self.files:
            raise VideoError(self.name, "no image in the folder")
        try:
            Limits.current().check_frames(len(self.files))
        except InputError as error:
            raise VideoError(self.name, str(error)) from None

    def __len__(self) -> int:
        return len(self.files)

    def __enter__(self) -> FrameFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def close(self) -> None:
        """Do nothing, since no file is kept open."""

    def read(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Return the frames at `indices`, uint8 [T, H, W, 3] RGB.

        Errors as `Video.read`. All images must have one size.
        """
        from clipvid.decoding.tensors import read_frames_at

        return read_frames_at(self.name, indices, len(self), self.frames)

    def frames(self, indices: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """Yield number and frame of sorted indices, see `clipvid.data.reader.Video.frames`."""
        from clipvid.decoding.tensors import as_tensors

        return as_tensors(self.pictures(indices))

    def pictures(self, indices: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield what `frames` does, as arrays."""
        size: tuple[int, ...] | None = None
        for index in indices:
            image = self._image(index)
            if size is not None and image.shape[:2] != size:
                sizes = sorted((size, image.shape[:2]))
                raise VideoError(self.name, f"its images differ in size: {sizes} (height, width)")
            size = image.shape[:2]
            yield index, image

    def reduced_pictures(
        self, indices: Sequence[int], longest: int, full: Collection[int]
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:
        """Yield numbers, small pictures and some full ones, see `clipvid.data.reader.Video.reduced_pictures`."""
        for index, picture in self.pictures(indices):
            yield index, reduced(picture, longest), picture if index in full else None

    def frames_between(self, start: float | None, end: float | None) -> range:
        """Return all frames, since a folder has no times.

        Raises:
            VideoError: A start or an end is given.
        """
        if start is not None or end is not None:
            raise VideoError(self.name, f"a folder of frames has no times; {start} to {end} seconds cannot be selected")
        return range(len(self))

    def frame_times(self, part: range) -> None:
        """Return None: images have no times, and count as evenly spaced."""

    def _image(self, index: int) -> np.ndarray:
        """Return one image, uint8 [H, W, 3]. Its size is checked before decoding."""
        try:
            with open_regular(self.files[index]) as file, Image.open(file, formats=IMAGE_FORMATS) as image:
                Limits.current().check_size(*image.size)
                if image.format in _ANIMATED and getattr(image, "is_animated", False):
                    raise VideoError(
                        self.name,
                        f"{self.files[index].name} has several pictures, and images in a folder are the frames of one "
                        "video; give an animation as a file in a list",
                    )
                return picture_of(image)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise VideoError(self.name, f"{self.files[index].name} is not a readable image ({error})") from None


def picture_of(image: Image.Image) -> np.ndarray:
    """Return an image as uint8 [H, W, 3], in front of black."""
    if image.has_transparency_data:
        return over_black(np.asarray(image.convert("RGBA")))
    return np.array(image.convert("RGB"))


def is_image(path: Path) -> bool:
    """Return True for a path with the suffix of an image that is not hidden."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]
