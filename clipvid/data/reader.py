"""The one door to video files: `open_video` and `read_frames`, over decord and PyAV.

An index is a position in the presentation order of the frames that decode, the same in both backends; frames
come upright (the container's rotation applied) as RGB. The packets are walked first (`demux.scan`):
- where time stamps tell frames apart, a frame is found by its own, decoding from the keyframe before it;
- where they do not (damage, B-frames in AVI, raw streams), frames are counted as the decoder gives them, from
  the start, once when opening and once per read. Slow and right.
decord is used for the files where it was seen to return the frame that was asked for; see `_decord_refusal`.
"""

import contextlib
import functools
import itertools
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from clipvid.data.demux import INDEXED_FORMATS, Keyframe, Opened, Scan, decoded, opened, packets, scan, skipped_to

Source: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO
Backend: TypeAlias = Literal["auto", "decord", "pyav"]


class VideoError(RuntimeError):
    """A video that cannot be read: `path` (a description for bytes and file objects) and a one-line `reason`.

    A DataLoader raises it again in the parent process from one formatted message, hence the optional reason.
    """

    def __init__(self, path: str, reason: str | None = None) -> None:
        super().__init__(path if reason is None else f"{path}: {reason}")
        self.path, self.reason = path, reason

    def __reduce__(self) -> tuple[type, tuple[str, str | None]]:
        return type(self), (self.path, self.reason)


def read_frames(source: Source, indices: Sequence[int] | Tensor, *, backend: Backend = "auto") -> Tensor:
    """Frames at `indices`, in the order asked, repeats allowed: uint8 [T, H, W, 3] RGB.

    Raises `VideoError` where the video cannot be read, IndexError for an index outside of it.
    """
    with open_video(source, backend) as video:
        return video.read(indices)


def open_video(source: Source, backend: Backend = "auto") -> "Video":
    """Open a path, the bytes of a file, or a binary file object (which is read whole, from its start).

    `auto` takes decord where it is installed and exact for this file, else PyAV; `decord` insists on decord.
    Raises `VideoError` where the video cannot be read (by that backend).
    """
    return Video(source, backend)


class Video:
    """An open video: `len()`, `fps`, `read(indices)`; a context manager. Made by `open_video`.

    `fps` is the average frame rate, None where the file does not say; `backend` is the one in use. Every index
    in range(len(video)) can be read. Where damage shows only in reading (sound packets that do not decode), the
    length stays, and a lost frame is what a player would show: the last one before it that did decode.
    """

    def __init__(self, source: Source, backend: Backend = "auto") -> None:
        if backend not in ("auto", "decord", "pyav"):
            raise ValueError(f"backend is {backend!r}; expected 'auto', 'decord' or 'pyav'")
        self.name, self._source = _resolve(source)
        with _reported(self.name):
            self._scan = scan(self._source)
            timeline = self._scan.timeline
            self._length = len(timeline.times) if timeline is not None else sum(1 for _ in self._decode())
        if self._length == 0:
            raise VideoError(self.name, "no frame can be decoded (encrypted, damaged or empty video stream)")
        self._decord = None if backend == "pyav" else self._open_decord(required=backend == "decord")

    @property
    def fps(self) -> float | None:
        return self._scan.fps

    @property
    def backend(self) -> str:
        return "pyav" if self._decord is None else "decord"

    def __len__(self) -> int:
        return self._length

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._decord = None

    def read(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Frames at `indices` (any order, repeats allowed): uint8 [T, H, W, 3] RGB.

        Raises IndexError for an index outside of [0, len), ValueError for no index, `VideoError` where nothing
        can be decoded.
        """
        wanted = [int(index) for index in indices]
        if not wanted:
            raise ValueError(f"{self.name}: no frame indices given; expected at least one")
        for index in (min(wanted), max(wanted)):
            if not 0 <= index < self._length:
                raise IndexError(f"{self.name}: frame {index} asked of a video of {self._length} frames")
        unique = sorted(set(wanted))
        frames = self._read_decord(unique)
        if frames is None:
            with _reported(self.name):
                images = self._read_counted(unique) if self._scan.timeline is None else self._read_timed(unique)
                frames = np.stack([images[index] for index in unique])
        row = {index: i for i, index in enumerate(unique)}
        return torch.from_numpy(frames[[row[index] for index in wanted]])

    def _open_decord(self, *, required: bool) -> Any | None:
        decord, reader = _import_decord(), None
        refusal = "decord is not installed" if decord is None else _decord_refusal(self._scan, self._source)
        if decord is not None and refusal is None:
            try:
                reader = decord.VideoReader(self._source, num_threads=1)
            except _decord_errors():
                refusal = "decord cannot open it"
            else:
                if len(reader) != self._length:
                    refusal, reader = f"decord counts {len(reader)} frames, not {self._length}", None
        if reader is None and required:
            raise VideoError(self.name, f"{refusal}; use backend 'auto' or 'pyav'")
        return reader

    def _read_decord(self, indices: list[int]) -> np.ndarray | None:
        """Frames [T, H, W, 3], or None, for this read and all later ones, where decord fails on them."""
        if self._decord is None:
            return None
        try:
            batch = self._decord.get_batch(indices)
        except _decord_errors():
            self._decord = None
            return None
        return np.asarray(batch.asnumpy() if hasattr(batch, "asnumpy") else batch)

    def _read_counted(self, indices: list[int]) -> dict[int, np.ndarray]:
        image, wanted = _ImageOf(self._scan), set(indices)
        frames = enumerate(itertools.islice(self._decode(), indices[-1] + 1))
        return {index: image(frame) for index, frame in frames if index in wanted}

    def _read_timed(self, indices: list[int]) -> dict[int, np.ndarray]:
        timeline, image = self._scan.timeline, _ImageOf(self._scan)
        assert timeline is not None
        images: dict[int, np.ndarray] = {}
        with opened(self._source) as container_and_stream:
            for run in self._runs(sorted({timeline.entries[index] for index in indices})):
                waiting = {timeline.times[index]: index for index in indices if timeline.entries[index] in run}
                for frame in self._decode_from(timeline.keyframes[run[0]], container_and_stream):
                    if frame.pts in waiting:
                        images[waiting.pop(frame.pts)] = image(frame)
                    if not waiting:
                        break
        return images if len(images) == len(indices) else self._read_held(indices)

    def _read_held(self, indices: list[int]) -> dict[int, np.ndarray]:
        """Frames of a damaged video: each the last at or before its time that decodes, or else the first."""
        assert self._scan.timeline is not None
        times = sorted({frame.pts for frame in self._decode() if frame.pts is not None})
        if not times:
            raise VideoError(self.name, "no frame can be decoded (encrypted or damaged video stream)")
        asked = {index: self._scan.timeline.times[index] for index in indices}
        shown = {index: times[max(bisect_right(times, time) - 1, 0)] for index, time in asked.items()}
        image, needed = _ImageOf(self._scan), set(shown.values())
        images = {frame.pts: image(frame) for frame in self._decode() if frame.pts in needed}
        return {index: images[time] for index, time in shown.items()}

    def _runs(self, entries: list[int]) -> list[list[int]]:
        """Keyframes to decode from: each by a seek of its own, but neighbours in one go where seeking is slow."""
        runs: list[list[int]] = []
        for entry in entries:
            if runs and entry == runs[-1][-1] + 1 and self._scan.format not in INDEXED_FORMATS:
                runs[-1].append(entry)
            else:
                runs.append([entry])
        return runs

    def _decode(self) -> Iterator[av.VideoFrame]:
        with opened(self._source) as (container, stream):
            yield from decoded(stream, packets(container, stream))

    def _decode_from(self, keyframe: Keyframe, container_and_stream: Opened) -> Iterator[av.VideoFrame]:
        """Frames from `keyframe` on. The decoder is given no packet before it, wherever a seek lands."""
        container, stream = container_and_stream
        if self._scan.format in INDEXED_FORMATS:
            container.seek(keyframe.seek_time, stream=stream)
            following = skipped_to(keyframe, packets(container, stream))
            first = next(following, None)
            if first is not None:
                yield from decoded(stream, itertools.chain([first], following))
                return
        with opened(self._source) as (container, stream):
            yield from decoded(stream, skipped_to(keyframe, packets(container, stream)))


class _ImageOf:
    """Turns decoded frames of one video into upright RGB images uint8 [H, W, 3] of one size."""

    def __init__(self, scanned: Scan) -> None:
        self._size = (scanned.width, scanned.height) if scanned.width and scanned.height else None
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        if self._size is None:
            self._size = (frame.width, frame.height)
        rgb = self._reformatter.reformat(frame, *self._size, format="rgb24")
        return np.rot90(rgb.to_ndarray(), round(frame.rotation / 90))


def _decord_refusal(scanned: Scan, source: str | bytes) -> str | None:
    """Why decord is not to be trusted with a file, None where it is.

    Each reason was seen with decord 0.6: a crash of the process on a damaged file in memory; wrong frames,
    silently, after seeks in MPEG-TS, MPEG-PS, AVI and ASF, around keyframes with leading pictures, and near the
    end of H.264 whose keyframes do not reset the decoder; counts that include what does not decode, with the
    last frame repeated to make up for it; colours of more than 8 bits far from those of current FFmpeg.
    """
    if not isinstance(source, str):
        return "decord can crash on videos in memory"
    if scanned.timeline is None:
        return "its time stamps do not tell its frames apart, which decord relies on"
    if scanned.format not in INDEXED_FORMATS:
        return f"decord does not seek exactly in {scanned.format} files"
    if not scanned.timeline.closed_gops:
        return "decord does not seek exactly where groups of pictures are open"
    if not scanned.checked:
        return "damage in its codec shows in decoding only, and decord does not tell"
    if scanned.num_streams > 1:
        return "it has several video streams, of which decord may choose another"
    if scanned.bits != 8:
        return f"decord converts its {scanned.bits}-bit colours differently"
    return None


@functools.cache
def _import_decord() -> Any | None:
    """The decord module, quiet; None where it is not installed or its libraries do not load."""
    try:
        import decord
    except (ImportError, OSError):
        return None
    decord.logging.set_level(decord.logging.QUIET)
    return decord


def _decord_errors() -> tuple[type[Exception], ...]:
    from decord._ffi.base import DECORDError

    return (DECORDError, RuntimeError)


def _resolve(source: Source) -> tuple[str, str | bytes]:
    """A name for messages, and the source as an absolute path or as bytes."""
    if isinstance(source, bytes):
        return f"<{len(source)} bytes>", source
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        path = Path(name).absolute()
        if not path.is_file():
            raise VideoError(name, "it is not a regular file" if path.exists() else "no such file")
        # FFmpeg takes file names in UTF-8 only; a file named otherwise is handed over by its content.
        return (name, str(path)) if str(path).isprintable() else (repr(name), path.read_bytes())
    if source.seekable():
        source.seek(0)
    given = getattr(source, "name", None)
    return given if isinstance(given, str) else f"<{type(source).__name__}>", source.read()


@contextlib.contextmanager
def _reported(name: str) -> Iterator[None]:
    """Errors of the libraries underneath as one `VideoError`."""
    try:
        yield
    except (av.FFmpegError, OSError, ValueError, OverflowError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise VideoError(name, f"not a readable video ({reason.splitlines()[0]})") from None
