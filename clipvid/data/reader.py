"""`open_video` and `read_frames`, the interface to video files, over decord, torchcodec and PyAV.

An index is a position in the presentation order of decodable frames, the same in all backends. Frames look as in a
player (`clipvid.decoding.pictures`). The packets are walked first (`demux.scan`):
- If time stamps distinguish frames, a frame is found by its time, decoding from the keyframe before it.
- Otherwise (damage, B-frames in AVI, raw streams), frames are counted by decoding from the start, once when opening and
  once per read. This is slow but correct.

decord and torchcodec are used on request, for files where they return exactly these frames; see
`clipvid.decoding.fast_readers`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from bisect import bisect_right
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO, Literal, TypeAlias

import av
import numpy as np

from clipvid import InputError
from clipvid.decoding.demux import (
    INDEXED_FORMATS,
    Keyframe,
    Opened,
    decoded,
    opened,
    packets,
    scan,
    skipped_to,
)
from clipvid.decoding.errors import VideoError
from clipvid.decoding.fast_readers import FastReader, Refused, check_plain, open_fast
from clipvid.decoding.files import open_regular
from clipvid.decoding.frames import FrameFolder
from clipvid.decoding.pictures import PictureMaker
from clipvid.decoding.timed_video import TimedVideo
from clipvid.decoding.webp import HEAD_BYTES, AnimatedWebp, is_animated_webp

if TYPE_CHECKING:
    from torch import Tensor

Source: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO
Backend: TypeAlias = Literal["auto", "decord", "torchcodec", "pyav"]
BACKENDS = ("auto", "decord", "torchcodec", "pyav")
_FAST_FRAMES = 16  # that decord and torchcodec decode at once


def read_frames(source: Source, indices: Sequence[int] | Tensor, *, backend: Backend = "auto") -> Tensor:
    """Read the frames at `indices`, in any order, repeats allowed: uint8 [T, H, W, 3] RGB.

    Raises:
        VideoError: The video cannot be read.
        IndexError: An index is out of range.
    """
    with open_video(source, backend) as video:
        return video.read(indices)


def open_video(source: Source, backend: Backend = "auto") -> Video | AnimatedWebp | FrameFolder:
    """Open a path, the bytes of a file, a binary file object (read completely) or a folder of images.

    Args:
        source: The video. A path must point to a regular file.
        backend: `auto` is PyAV, which is robust to any file. Use `decord` and `torchcodec` only for trusted files:
            their libraries can crash the process on a damaged file.

    Raises:
        VideoError: The video cannot be read (by that backend).
    """
    if isinstance(source, str | os.PathLike) and os.path.isdir(source):
        return FrameFolder(source)
    if backend not in BACKENDS:
        raise InputError(f"backend is {backend!r}; expected one of {', '.join(map(repr, BACKENDS))}")
    name, content, head = _resolve(source)
    if not is_animated_webp(head):
        return Video(name, content, backend)
    if backend not in ("auto", "pyav"):
        raise VideoError(name, f"{backend} does not read animated WebP; use backend 'auto'")
    return AnimatedWebp(name, content)


class Video(TimedVideo):
    """Open video with `len()`, `fps` and `read(indices)`; a context manager. Use `open_video` to create it.

    `fps` is the average frame rate, or None if unknown. `backend` is the backend in use. Every index in
    range(len(video)) can be read. If damage only appears while reading, the length stays. A lost frame is then replaced
    as in a player, by the last decodable one before it.
    """

    def __init__(self, name: str, source: str | bytes, backend: Backend = "auto") -> None:
        self.name, self._source = name, source
        with _reported(self.name):
            self._scan = scan(self._source)
            frame_times = self._scan.frame_times
            self._length = len(frame_times.times) if frame_times is not None else sum(1 for _ in self._decode())
        if self._length == 0:
            raise VideoError(self.name, "no frame can be decoded (encrypted, damaged or empty video stream)")
        self._fast = self._open_fast(backend)

    @property
    def fps(self) -> float | None:
        """Average frame rate, or None if the file does not store it."""
        return self._scan.fps

    @property
    def backend(self) -> str:
        """Name of the backend in use."""
        return "pyav" if self._fast is None else self._fast.name

    @functools.cached_property
    def times(self) -> list[float] | None:
        """Presentation times of the frames in seconds from the first, or None if unknown."""
        frame_times = self._scan.frame_times
        if frame_times is not None:
            return [(time - frame_times.times[0]) * frame_times.time_base for time in frame_times.times]
        return [index / self.fps for index in range(self._length)] if self.fps else None

    @property
    def has_varying_rate(self) -> bool:
        """True if the frame rate varies by more than a factor of two between parts of at least a tenth of the time."""
        times = self._scan.frame_times
        return times is not None and times.rate_varies

    def __len__(self) -> int:
        return self._length

    def close(self) -> None:
        """Release the file."""
        self._fast = None

    def pictures(self, indices: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield what `frames` does, as arrays."""
        remaining = deque(indices)
        yield from self._fast_pictures(remaining)
        picture = self._picture_maker()
        with _reported(self.name):
            for index, frame in self._frames_at(remaining):
                yield index, np.ascontiguousarray(picture(frame))

    def reduced_pictures(
        self, indices: Sequence[int], longest: int, full: Collection[int]
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:
        """Yield numbers, small pictures and some full ones, see `TimedVideo.reduced_pictures`."""
        if self._fast is not None:
            yield from super().reduced_pictures(indices, longest, full)
            return
        small, large = self._picture_maker(longest), self._picture_maker()
        with _reported(self.name):
            for index, frame in self._frames_at(deque(indices)):
                whole = np.ascontiguousarray(large(frame)) if index in full else None
                yield index, np.ascontiguousarray(small(frame)), whole

    def _fast_pictures(self, remaining: deque[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the pictures that the fast reader can read, and remove their numbers from `remaining`."""
        while remaining and self._fast is not None:
            part = [remaining[place] for place in range(min(_FAST_FRAMES, len(remaining)))]
            try:
                pictures = self._fast.read(part)
            except Refused:
                self._fast = None  # for all later reads, too
                return
            for index, picture in zip(part, pictures, strict=True):
                remaining.popleft()
                yield index, np.ascontiguousarray(picture)

    def _frames_at(self, remaining: deque[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yield the decoded frames of `remaining`, and remove their numbers from it."""
        if remaining:
            yield from self._counted(remaining) if self._scan.frame_times is None else self._timed(remaining)

    def _open_fast(self, backend: Backend) -> FastReader | None:
        """Open the reader of `backend` if it is exact for this file."""
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

    def _counted(self, remaining: deque[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        for index, frame in enumerate(self._decode()):
            if index == remaining[0]:
                yield remaining.popleft(), frame
                if not remaining:
                    return

    def _timed(self, remaining: deque[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        frame_times = self._scan.frame_times
        assert frame_times is not None
        with opened(self._source) as container_and_stream:
            for run in self._runs(frame_times.entries, remaining):
                for frame in self._decode_from(frame_times.keyframes[run[0]], container_and_stream):
                    if frame.pts == frame_times.times[remaining[0]]:
                        yield remaining.popleft(), frame
                    elif frame.pts is not None and frame.pts > frame_times.times[remaining[0]]:
                        break
                    if not remaining or frame_times.entries[remaining[0]] not in run:
                        break
                if remaining and frame_times.entries[remaining[0]] in run:
                    break
        if remaining:
            yield from self._held(remaining)

    def _held(self, remaining: deque[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yield frames of a damaged video: for each, the last decodable one at or before its time, or the first."""
        assert self._scan.frame_times is not None
        times = sorted({frame.pts for frame in self._decode() if frame.pts is not None})
        if not times:
            raise VideoError(self.name, "no frame can be decoded (encrypted or damaged video stream)")
        shown = deque(
            times[max(bisect_right(times, self._scan.frame_times.times[index]) - 1, 0)] for index in remaining
        )
        needed, frames = set(shown), dict[int, av.VideoFrame]()
        for frame in self._decode():
            if frame.pts in needed:
                frames[frame.pts] = frame
            while remaining and shown[0] in frames:
                time = shown.popleft()
                yield remaining.popleft(), frames[time]
                if not shown or shown[0] != time:
                    del frames[time]

    def _runs(self, entries: Sequence[int], indices: Iterable[int]) -> list[list[int]]:
        """Group the keyframes to decode from.

        Adjacent ones form one run if seeking is slow, or if the next frame that is needed follows directly.
        """
        needed: dict[int, list[int]] = {}
        for index in indices:
            needed.setdefault(entries[index], []).append(index)
        runs: list[list[int]] = []
        for entry in sorted(needed):
            follows = bool(runs) and entry == runs[-1][-1] + 1
            if follows and (self._scan.format not in INDEXED_FORMATS or needed[entry][0] == needed[entry - 1][-1] + 1):
                runs[-1].append(entry)
            else:
                runs.append([entry])
        return runs

    def _picture_maker(self, longest: int | None = None) -> PictureMaker:
        size = (self._scan.width, self._scan.height)
        return PictureMaker(size if all(size) else None, longest)

    def _decode(self) -> Iterator[av.VideoFrame]:
        with opened(self._source) as (container, stream):
            yield from decoded(stream, packets(container, stream))

    def _decode_from(self, keyframe: Keyframe, container_and_stream: Opened) -> Iterator[av.VideoFrame]:
        """Yield frames from `keyframe` on. The decoder gets no packet before it, wherever a seek lands."""
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


def _resolve(source: Source) -> tuple[str, str | bytes, bytes]:
    """Return a name for messages, the source as an absolute path or bytes, and its first bytes."""
    if isinstance(source, bytes):
        return f"<{len(source)} bytes>", source, source[:HEAD_BYTES]
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        path = os.path.abspath(name)
        try:
            with open_regular(path) as file:
                head = file.read(HEAD_BYTES)
        except (InputError, OSError, ValueError) as error:
            raise VideoError(name, getattr(error, "strerror", None) or str(error)) from None
        return name if name.isprintable() else repr(name), path, head
    if source.seekable():
        source.seek(0)
    stream_name = getattr(source, "name", None)
    content = source.read()
    return stream_name if isinstance(stream_name, str) else f"<{type(source).__name__}>", content, content[:HEAD_BYTES]


@contextlib.contextmanager
def _reported(name: str) -> Iterator[None]:
    """Convert errors of the underlying libraries to VideoError."""
    try:
        yield
    except (av.FFmpegError, OSError, ValueError, OverflowError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise VideoError(name, f"not a readable video ({reason.splitlines()[0]})") from None
