"""decord and torchcodec, for the files where they are exact."""

from __future__ import annotations

import functools
from typing import Any, Protocol

import av
import numpy as np

from clipvid.data.decoding.demux import INDEXED_FORMATS, Scan
from clipvid.data.decoding.pictures import HDR_CURVES, display_matrix, is_mirrored


class Refused(Exception):
    """A reader that is not to be used, and why."""


class FastReader(Protocol):
    """An open video. `read` gives the frames at sorted indices, uint8 [T, H, W, 3], or raises Refused."""

    name: str

    def __len__(self) -> int: ...

    def read(self, indices: list[int]) -> np.ndarray: ...


def check_exact(scanned: Scan) -> None:
    """Raise Refused for files that either reader was seen to read otherwise than frame by frame, silently.

    Wrong frames after seeks in MPEG-TS, MPEG-PS, AVI and ASF, around keyframes with leading pictures, and near the end
    of H.264 whose keyframes do not reset the decoder; counts that include what does not decode; colours of more than 8
    bits far from those of current FFmpeg.
    """
    if scanned.frame_times is None:
        raise Refused("its time stamps do not tell its frames apart")
    if scanned.format not in INDEXED_FORMATS:
        raise Refused(f"only PyAV is seen to seek exactly in {scanned.format} files")
    if not scanned.frame_times.closed_gops:
        raise Refused("only PyAV is seen to seek exactly where groups of pictures are open")
    if not scanned.checked:
        raise Refused("damage in its codec shows in decoding only")
    if scanned.bits != 8:
        raise Refused(f"its {scanned.bits}-bit colours are converted differently")


def check_plain(scanned: Scan, frame: av.VideoFrame) -> None:
    """Raise Refused for a video whose frames, such as the first one, are shown otherwise than they are stored.

    Quarter turns are applied by the readers themselves.
    """
    if (frame.width, frame.height) != (scanned.width, scanned.height):
        raise Refused("only PyAV's frames are stretched to square pixels")
    if frame.color_trc in HDR_CURVES:
        raise Refused("only PyAV's frames are mapped from HDR to SDR")
    if is_mirrored(display_matrix(frame)):
        raise Refused("only PyAV's frames are mirrored")


class DecordReader:
    """decord 0.6, for trusted files only: it can end the process on a damaged file.

    It chooses video streams by its own rule.
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
            raise Refused("decord takes file names in UTF-8 only")
        if scanned.num_streams > 1:
            raise Refused("it has several video streams, of which decord may choose another")
        from decord._ffi.base import DECORDError

        self._errors = (DECORDError, RuntimeError)
        try:
            self._reader = decord.VideoReader(source, num_threads=1)
        except self._errors:
            raise Refused("decord cannot open it") from None

    def __len__(self) -> int:
        return len(self._reader)

    def read(self, indices: list[int]) -> np.ndarray:
        try:
            batch = self._reader.get_batch(indices)
        except self._errors:
            raise Refused("decord cannot decode it") from None
        return np.asarray(batch.asnumpy() if hasattr(batch, "asnumpy") else batch)


class TorchCodecReader:
    """torchcodec, in its exact mode, on the video stream that the scan chose."""

    name = "torchcodec"

    def __init__(self, scanned: Scan, source: str | bytes) -> None:
        decoders = _import_torchcodec()
        if decoders is None:
            raise Refused("torchcodec is not installed, or finds no FFmpeg")
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
        try:
            return self._reader.get_frames_at(indices).data.numpy()
        except (RuntimeError, ValueError, IndexError):
            raise Refused("torchcodec cannot decode it") from None


_READERS: dict[str, Any] = {"decord": DecordReader, "torchcodec": TorchCodecReader}


def open_fast(scanned: Scan, source: str | bytes, length: int, name: str) -> FastReader:
    """Open a video with the named reader.

    Raises:
        Refused: it is not installed, not exact for the file, or counts other than `length` frames.
    """
    reader: FastReader = _READERS[name](scanned, source)
    if len(reader) != length:
        raise Refused(f"{reader.name} counts {len(reader)} frames, not {length}")
    return reader


@functools.cache
def _import_decord() -> Any | None:
    """The decord module, quiet; None where it is not installed or its libraries do not load."""
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
