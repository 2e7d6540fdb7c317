"""Conversion of decoded frames to displayed pictures: upright, with square pixels, in SDR."""

from __future__ import annotations

import functools
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import SideData
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc, Interpolation, VideoReformatter
from PIL import Image

HDR_CURVES = frozenset((ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67))
# White of an SDR picture inside HDR, in nits (ITU-R BT.2408). Brighter highlights are clipped.
SDR_WHITE = 203.0
# Peak brightness of the HLG display, and the exponent of its system gamma (ITU-R BT.2100).
HLG_PEAK, HLG_GAMMA = 1000.0, 1.2
SDR_GAMMA = 2.2
_LEVELS = 65536
_UNSPECIFIED = 2  # color matrix of FFmpeg without a name in PyAV
# ITU-R BT.2087: linear BT.2020 to linear BT.709.
_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], dtype=np.float32
)
_BT2020_LUMA = np.array([0.2627, 0.6780, 0.0593], dtype=np.float32)


class PictureMaker:
    """Conversion of the frames of one video into RGB pictures uint8 [H, W, 3] of one size.

    Args:
        size: Width and height as shown, before rotation. None means those of the first frame.
        longest: Most pixels of a side. Larger pictures are reduced as they are converted, which is much faster than
            converting all of their pixels. Pairs of their pixels have one color. None means no limit.
    """

    def __init__(self, size: tuple[int, int] | None, longest: int | None = None) -> None:
        self._longest = longest
        self._size = None if size is None else reduced_size(*size, longest)
        self._options = _one_thread() if longest is None else _one_thread() | {"interpolation": Interpolation.AREA}
        self._reformatter = VideoReformatter()
        self._matrices: dict[float | None, tuple[int, int, int, int]] = {}

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """Return the picture of a frame."""
        if self._size is None:
            self._size = reduced_size(frame.width, frame.height, self._longest)
        if frame.color_trc in HDR_CURVES:
            # Without an explicit matrix, an HDR curve implies BT.2020.
            matrix = Colorspace.BT2020 if frame.colorspace == _UNSPECIFIED else None
            wide = self._converted(frame, "rgb48le", src_colorspace=matrix)
            picture = tone_mapped(wide, frame.color_trc, frame.color_primaries)
        elif has_alpha(frame):
            picture = over_black(self._converted(frame, "rgba"))
        else:
            picture = self._converted(frame, "rgb24")
        # PyAV keeps a frame whose side data are read until the next garbage collection, hence once for each rotation.
        rotation = getattr(frame, "rotation", None)
        if rotation not in self._matrices:
            self._matrices[rotation] = display_matrix(frame)
        return oriented(picture, self._matrices[rotation])

    def _converted(self, frame: av.VideoFrame, pixels: str, **options: Any) -> np.ndarray:
        assert self._size is not None
        width, height = self._size
        converted = self._reformatter.reformat(frame, width, height, pixels, **self._options, **options)
        return converted.to_ndarray()


def reduced_size(width: int, height: int, longest: int | None) -> tuple[int, int]:
    """Return width and height with the same ratio and at most `longest` pixels. Small pictures keep their size."""
    scale = 1.0 if longest is None else longest / max(width, height)
    return (width, height) if scale >= 1 else (max(round(width * scale), 1), max(round(height * scale), 1))


def reduced(picture: np.ndarray, longest: int) -> np.ndarray:
    """Return a picture uint8 [H, W, 3] with at most `longest` pixels on a side, by means over areas."""
    height, width = picture.shape[:2]
    size = reduced_size(width, height, longest)
    if size == (width, height):
        return picture
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


def has_alpha(frame: av.VideoFrame) -> bool:
    """Return True for a frame with an alpha channel."""
    return _format_has_alpha(frame.format.name)


@functools.cache
def _format_has_alpha(name: str) -> bool:
    return any(component.is_alpha for component in av.VideoFormat(name).components)


def over_black(picture: np.ndarray) -> np.ndarray:
    """Return a picture uint8 [H, W, 4] (RGBA) in front of black: uint8 [H, W, 3]."""
    color, alpha = picture[..., :3], picture[..., 3:]
    return ((color.astype(np.uint16) * alpha + 127) // 255).astype(np.uint8)


def display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """Return (a, b, c, d) of a frame's display matrix: x' = a x + c y, y' = b x + d y, in units of 1 / 65536."""
    side = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(side, SideData):
        return (1 << 16, 0, 0, 1 << 16)
    a, b, _, c, d = np.frombuffer(memoryview(side), dtype=np.int32)[:5].tolist()
    return (a, b, c, d)


def is_mirrored(matrix: tuple[int, int, int, int]) -> bool:
    """Return True for a matrix that mirrors a picture."""
    a, b, c, d = matrix
    return a * d - b * c < 0


def oriented(picture: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Rotate and mirror a picture [H, W, 3] by its display matrix, to the nearest quarter turn."""
    a, b, c, d = matrix
    if abs(a) + abs(d) >= abs(b) + abs(c):
        across, down = a, d
    else:
        picture, across, down = picture.swapaxes(0, 1), c, b
    return picture[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]


def tone_mapped(picture: np.ndarray, curve: int, primaries: int) -> np.ndarray:
    """Map an HDR picture to SDR: `SDR_WHITE` nits become 255, with the gamma of an SDR display.

    Args:
        picture: uint16 [H, W, 3], PQ or HLG codes over the full range.
        curve: `ColorTrc` of PQ or HLG.
        primaries: `ColorPrimaries`. Anything other than BT.709 is treated as BT.2020, the primaries of HDR.

    Returns:
        uint8 [H, W, 3].
    """
    light = _linear(curve)[picture]
    if curve == ColorTrc.ARIB_STD_B67:
        light *= HLG_PEAK / SDR_WHITE * (light @ _BT2020_LUMA)[..., None] ** (HLG_GAMMA - 1)
    if primaries != ColorPrimaries.BT709:
        light = light @ _TO_BT709.T
    return _sdr_codes()[(light.clip(0, 1) * (_LEVELS - 1)).round().astype(np.uint16)]


@functools.cache
def _one_thread() -> dict[str, Any]:
    """Return the option for converting in one thread.

    PyAV 17 and later start a thread for each core by default. For small pictures this takes far longer than converting
    them. Earlier versions have one thread, and do not know the option.
    """
    option = {"threads": 1}
    try:
        VideoReformatter().reformat(av.VideoFrame(16, 16, "yuv420p"), format="rgb24", **option)
    except TypeError:
        return {}
    return option


@functools.cache
def _linear(curve: int) -> np.ndarray:
    """Return the light of each code: PQ in units of `SDR_WHITE`, HLG as scene light in 0..1."""
    code = np.arange(_LEVELS) / (_LEVELS - 1)
    if curve == ColorTrc.SMPTE2084:
        root = code ** (1 / 78.84375)
        light = (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125)
        return (light * (10_000 / SDR_WHITE)).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12).astype(np.float32)


@functools.cache
def _sdr_codes() -> np.ndarray:
    return ((np.arange(_LEVELS) / (_LEVELS - 1)) ** (1 / SDR_GAMMA) * 255).round().astype(np.uint8)
