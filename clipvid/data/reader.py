"""The one door to video files: `open_video` and `read_frames`, over decord, torchcodec and PyAV.

An index is a position in the presentation order of the frames that decode, the same in all backends; frames
come as a player shows them (`clipvid.data.decoding.pictures`). The packets are walked first (`demux.scan`):
- where time stamps tell frames apart, a frame is found by its own, decoding from the keyframe before it;
- where they do not (damage, B-frames in AVI, raw streams), frames are counted as the decoder gives them, from
  the start, once when opening and once per read. Slow and right.
decord and torchcodec are used on request, for the files where they return exactly these frames; see
`clipvid.data.decoding.fast_readers`.
"""

import contextlib
import functools
import itertools
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Literal, TypeAlias

import av
import numpy as np
import torch
from torch import Tensor

from clipvid import InputError
from clipvid.data.decoding.demux import (
    INDEXED_FORMATS,
    Keyframe,
    Opened,
    decoded,
    opened,
    packets,
    scan,
    skipped_to,
)
from clipvid.data.decoding.errors import VideoError, checked_indices
from clipvid.data.decoding.fast_readers import FastReader, Refused, check_plain, open_fast
from clipvid.data.decoding.files import open_regular
from clipvid.data.decoding.frames import FrameFolder
from clipvid.data.decoding.pictures import PictureMaker

Source: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO
Backend: TypeAlias = Literal["auto", "decord", "torchcodec", "pyav"]
BACKENDS = ("auto", "decord", "torchcodec", "pyav")


def read_frames(source: Source, indices: Sequence[int] | Tensor, *, backend: Backend = "auto") -> Tensor:
    """Frames at `indices`, in the order asked, repeats allowed: uint8 [T, H, W, 3] RGB.

    Raises `VideoError` where the video cannot be read, IndexError for an index outside of it.
    """
    with open_video(source, backend) as video:
        return video.read(indices)


def open_video(source: Source, backend: Backend = "auto") -> "Video | FrameFolder":
    """Open a path, the bytes of a file, a binary file object (which is read whole, from its start), or a folder of
    images.

    Args:
        source: the video. A path must name a regular file.
        backend: `auto` is PyAV, which survives any file. `decord` and `torchcodec` are for files that you trust:
            their libraries can end the process on a damaged file.

    Raises:
        VideoError: the video cannot be read (by that backend).
    """
    if isinstance(source, str | os.PathLike) and os.path.isdir(source):
        return FrameFolder(source)
    return Video(source, backend)


class Video:
    """An open video: `len()`, `fps`, `read(indices)`; a context manager. Made by `open_video`.

    `fps` is the average frame rate, None where the file does not say; `backend` is the one in use. Every index
    in range(len(video)) can be read. Where damage shows only in reading (sound packets that do not decode), the
    length stays, and a lost frame is what a player would show: the last one before it that did decode.
    """

    def __init__(self, source: Source, backend: Backend = "auto") -> None:
        if backend not in BACKENDS:
            raise InputError(f"backend is {backend!r}; expected one of {', '.join(map(repr, BACKENDS))}")
        self.name, self._source = _resolve(source)
        with _reported(self.name):
            self._scan = scan(self._source)
            frame_times = self._scan.frame_times
            self._length = len(frame_times.times) if frame_times is not None else sum(1 for _ in self._decode())
        if self._length == 0:
            raise VideoError(self.name, "no frame can be decoded (encrypted, damaged or empty video stream)")
        self._fast = self._open_fast(backend)

    @property
    def fps(self) -> float | None:
        return self._scan.fps

    @property
    def backend(self) -> str:
        return "pyav" if self._fast is None else self._fast.name

    @functools.cached_property
    def times(self) -> list[float] | None:
        """Presentation times of the frames in seconds from the first; None where the file does not tell them."""
        frame_times = self._scan.frame_times
        if frame_times is not None:
            return [(time - frame_times.times[0]) * frame_times.time_base for time in frame_times.times]
        return [index / self.fps for index in range(self._length)] if self.fps else None

    @property
    def duration(self) -> float | None:
        """Seconds from the first frame to the end of the last, which is shown as long as the one before it."""
        if self.times is None:
            return None
        last = self.times[-1] - self.times[-2] if self._length > 1 else 1 / (self.fps or 1.0)
        return self.times[-1] + last

    @property
    def has_varying_rate(self) -> bool:
        """True if the frame rate of some parts is over twice that of others, each a tenth of the time or more."""
        if self.times is None or self._length < 3:
            return False
        gaps = np.sort(np.diff(self.times))
        passed = gaps.cumsum()
        short, long = (gaps[np.searchsorted(passed, share * passed[-1])] for share in (0.1, 0.9))
        # Times in files are rounded, to 1 ms in some.
        return bool(long > 2.1 * short + 0.002)

    def __len__(self) -> int:
        return self._length

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._fast = None

    def read(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Frames at `indices` (any order, repeats allowed): uint8 [T, H, W, 3] RGB.

        Raises IndexError for an index outside of [0, len), ValueError for no index, `VideoError` where nothing
        can be decoded.
        """
        wanted = checked_indices(self.name, indices, self._length)
        unique = sorted(set(wanted))
        frames = self._read_fast(unique)
        if frames is None:
            with _reported(self.name):
                images = self._read_counted(unique) if self._scan.frame_times is None else self._read_timed(unique)
                frames = np.stack([images[index] for index in unique])
        row = {index: i for i, index in enumerate(unique)}
        return torch.from_numpy(frames[[row[index] for index in wanted]])

    def frames_between(self, start: float | None, end: float | None) -> range:
        """Frames shown from `start` to before `end`, in seconds from the first frame; None for the video's own ends.

        At least one: the frame that is on screen at `start`. Raises `VideoError` where the video is over by then, or
        does not tell its times.
        """
        if start is None and end is None:
            return range(self._length)
        times, begin = self.times, start or 0.0
        if times is None:
            raise VideoError(self.name, f"it has no times to take {start} to {end} seconds by")
        interval = times[-1] / (len(times) - 1) if len(times) > 1 else 1 / (self.fps or 1.0)
        if begin >= times[-1] + interval:
            raise VideoError(
                self.name, f"it ends after {times[-1] + interval:.2f} s, before its part from {begin:.2f} s"
            )
        # Times in files are rounded: what begins within a tenth of a frame counts as begun.
        first = bisect_left(times, begin - interval / 10)
        last = len(times) if end is None else bisect_left(times, end - interval / 10)
        shown = max(bisect_right(times, begin) - 1, 0)
        return range(first, last) if first < last else range(shown, shown + 1)

    def _open_fast(self, backend: Backend) -> FastReader | None:
        """Open the reader that `backend` names, where it is exact for this file."""
        if backend in ("auto", "pyav"):
            return None
        try:
            reader = open_fast(self._scan, self._source, self._length, backend)
            with _reported(self.name):
                first = next(self._decode(), None)
            if first is not None:
                check_plain(self._scan, first)
        except Refused as refusal:
            raise VideoError(self.name, f"{refusal}; use backend 'auto' or 'pyav'") from None
        return reader

    def _read_fast(self, indices: list[int]) -> np.ndarray | None:
        """Frames [T, H, W, 3], or None, for this read and all later ones, where the fast reader fails on them."""
        if self._fast is None:
            return None
        try:
            return self._fast.read(indices)
        except Refused:
            self._fast = None
            return None

    def _read_counted(self, indices: list[int]) -> dict[int, np.ndarray]:
        image, wanted = self._picture_maker(), set(indices)
        frames = enumerate(itertools.islice(self._decode(), indices[-1] + 1))
        return {index: image(frame) for index, frame in frames if index in wanted}

    def _read_timed(self, indices: list[int]) -> dict[int, np.ndarray]:
        frame_times, image = self._scan.frame_times, self._picture_maker()
        assert frame_times is not None
        images: dict[int, np.ndarray] = {}
        with opened(self._source) as container_and_stream:
            for run in self._runs(sorted({frame_times.entries[index] for index in indices})):
                waiting = {frame_times.times[index]: index for index in indices if frame_times.entries[index] in run}
                for frame in self._decode_from(frame_times.keyframes[run[0]], container_and_stream):
                    if frame.pts in waiting:
                        images[waiting.pop(frame.pts)] = image(frame)
                    if not waiting:
                        break
        return images if len(images) == len(indices) else self._read_held(indices)

    def _read_held(self, indices: list[int]) -> dict[int, np.ndarray]:
        """Frames of a damaged video: each the last at or before its time that decodes, or else the first."""
        assert self._scan.frame_times is not None
        times = sorted({frame.pts for frame in self._decode() if frame.pts is not None})
        if not times:
            raise VideoError(self.name, "no frame can be decoded (encrypted or damaged video stream)")
        asked = {index: self._scan.frame_times.times[index] for index in indices}
        shown = {index: times[max(bisect_right(times, time) - 1, 0)] for index, time in asked.items()}
        image, needed = self._picture_maker(), set(shown.values())
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

    def _picture_maker(self) -> PictureMaker:
        size = (self._scan.width, self._scan.height)
        return PictureMaker(size if all(size) else None)

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


def _resolve(source: Source) -> tuple[str, str | bytes]:
    """A name for messages, and the source as an absolute path or as bytes."""
    if isinstance(source, bytes):
        return f"<{len(source)} bytes>", source
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        path = os.path.abspath(name)
        try:
            open_regular(path).close()
        except (InputError, OSError, ValueError) as error:
            raise VideoError(name, getattr(error, "strerror", None) or str(error)) from None
        return name if name.isprintable() else repr(name), path
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
