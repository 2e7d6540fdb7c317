"""Readers by decord and torchcodec, for files that they read exactly."""

from __future__ import annotations

import functools
from typing import Any, Protocol

import av
import numpy as np

from clipvid.decoding.demux import INDEXED_FORMATS, Scan
from clipvid.decoding.pictures import HDR_CURVES, display_matrix, has_alpha, is_mirrored


class Refused(Exception):
    """Reason not to use a reader."""


class FastReader(Protocol):
    """Open video. `read` returns the frames at sorted indices, uint8 [T, H, W, 3], or raises Refused."""

    name: str

    def __len__(self) -> int: ...

    def read(self, indices: list[int]) -> np.ndarray:
        """Return the frames at sorted indices, uint8 [T, H, W, 3]."""


def check_exact(scanned: Scan) -> None:
    """Raise Refused for kinds of files that one of the readers silently reads inexactly.

    Known problems:
    - wrong frames after seeks in MPEG-TS, MPEG-PS, AVI and ASF, and around keyframes with leading pictures
    - wrong frames near the end of H.264 whose keyframes do not reset the decoder
    - counts that include packets that cannot be decoded
    - colors of more than 8 bits that differ from current FFmpeg
    """
    if scanned.frame_times is None:
        raise Refused("its time stamps do not distinguish its frames")
    if scanned.format not in INDEXED_FORMATS:
        raise Refused(f"only PyAV seeks exactly in {scanned.format} files")
    if not scanned.frame_times.closed_gops:
        raise Refused("only PyAV seeks exactly with open groups of pictures")
    if not scanned.checked:
        raise Refused("damage in its codec is only visible by decoding")
    if scanned.bits != 8:
        raise Refused(f"its {scanned.bits}-bit colors are converted differently")


def check_plain(scanned: Scan, frame: av.VideoFrame) -> None:
    """Raise Refused for a video whose frames are not shown as stored, judged by its first frame.

    Quarter turns are allowed, since the readers apply them.
    """
    if (frame.width, frame.height) != (scanned.width, scanned.height):
        raise Refused("only PyAV's frames are stretched to square pixels")
    if frame.color_trc in HDR_CURVES:
        raise Refused("only PyAV's frames are mapped from HDR to SDR")
    if has_alpha(frame):
        raise Refused("only PyAV's frames are blended over black")
    if is_mirrored(display_matrix(frame)):
        raise Refused("only PyAV's frames are mirrored")


class DecordReader:
    """Reader by decord 0.6, for trusted files only: it can crash the process on a damaged file.

    It chooses video streams by different rules than FFmpeg.
    """

    name = "decord"

    def __init__(self, scanned: Scan, source: str | bytes) -> None:
        decord = _import_decord()
        if decord is None:
            raise Refused("decord is not installed")
        check_exact(scanned)
        if not isinstance(source, str):
            raise Refused("decord can crash on videos in memory")
        if not source.isprintable():
            raise Refused("decord only accepts file names in UTF-8")
        if scanned.num_streams > 1:
            raise Refused("it has several video streams, and decord may choose a different one")
        from decord._ffi.base import DECORDError

        self._errors = (DECORDError, RuntimeError)
        try:
            self._reader = decord.VideoReader(source, num_threads=1)
        except self._errors:
            raise Refused("decord cannot open it") from None

    def __len__(self) -> int:
        return len(self._reader)

    def read(self, indices: list[int]) -> np.ndarray:
        """Return the frames at sorted indices, uint8 [T, H, W, 3]."""
        try:
            batch = self._reader.get_batch(indices)
        except self._errors:
            raise Refused("decord cannot decode it") from None
        return np.asarray(batch.asnumpy() if hasattr(batch, "asnumpy") else batch)


class TorchCodecReader:
    """Reader by torchcodec in its exact mode, on the video stream of the scan."""

    name = "torchcodec"

    def __init__(self, scanned: Scan, source: str | bytes) -> None:
        decoders = _import_torchcodec()
        if decoders is None:
            raise Refused("torchcodec is not installed or does not find FFmpeg")
        check_exact(scanned)
        try:
            self._reader = decoders.VideoDecoder(
                source,
                stream_index=scanned.stream_index,
                dimension_order="NHWC",
                num_ffmpeg_threads=1,
                seek_mode="exact",
            )
        except (RuntimeError, ValueError):
            raise Refused("torchcodec cannot open it") from None

    def __len__(self) -> int:
        return len(self._reader)

    def read(self, indices: list[int]) -> np.ndarray:
        """Return the frames at sorted indices, uint8 [T, H, W, 3]."""
        try:
            return self._reader.get_frames_at(indices).data.numpy()
        except (RuntimeError, ValueError, IndexError):
            raise Refused("torchcodec cannot decode it") from None


_READERS: dict[str, Any] = {"decord": DecordReader, "torchcodec": TorchCodecReader}


def open_fast(scanned: Scan, source: str | bytes, length: int, name: str) -> FastReader:
    """Open a video with the named reader.

    Raises:
        Refused: The reader is not installed, not exact for the file, or does not count `length` frames.
    """
    reader: FastReader = _READERS[name](scanned, source)
    if len(reader) != length:
        raise Refused(f"{reader.name} counts {len(reader)} frames, not {length}")
    return reader


@functools.cache
def _import_decord() -> Any | None:
    """Return the decord module with logging disabled, or None if it cannot be imported."""
    try:
        import decord
    except (ImportError, OSError):
        return None
    decord.logging.set_level(decord.logging.QUIET)
    return decord


@functools.cache
def _import_torchcodec() -> Any | None:
    try:
        from torchcodec import decoders
    except (ImportError, OSError, RuntimeError):
        return None
    return decoders
