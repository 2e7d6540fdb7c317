"""The one door to video files: `open_video` and `read_frames`, over decord, torchcodec and PyAV.

An index is a position in the presentation order of the frames that decode, the same in all backends; frames
come upright (the container's rotation applied) as RGB. The packets are walked first (`demux.scan`):
- where time stamps tell frames apart, a frame is found by its own, decoding from the keyframe before it;
- where they do not (damage, B-frames in AVI, raw streams), frames are counted as the decoder gives them, from
  the start, once when opening and once per read. Slow and right.
The others are used for the files where they were seen to return the frame that was asked for; see
`clipvid.data.decoding.fast_readers`.
"""

import contextlib
import itertools
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Literal, TypeAlias

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from clipvid import InputError
from clipvid.data.decoding.demux import (
    INDEXED_FORMATS,
    Keyframe,
    Opened,
    Scan,
    decoded,
    opened,
    packets,
    scan,
    skipped_to,
)
from clipvid.data.decoding.errors import VideoError, checked_indices
from clipvid.data.decoding.fast_readers import FastReader, Refused, open_fast
from clipvid.data.decoding.files import open_regular
from clipvid.data.decoding.frames import FrameFolder

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

    `auto` takes decord, or where that is not installed torchcodec, if it is exact for this file, else PyAV; the others
    insist.
    Raises `VideoError` where the video cannot be read (by that backend).
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
            timeline = self._scan.timeline
            self._length = len(timeline.times) if timeline is not None else sum(1 for _ in self._decode())
        if self._length == 0:
            raise VideoError(self.name, "no frame can be decoded (encrypted, damaged or empty video stream)")
        self._fast = self._open_fast(backend)

    @property
    def fps(self) -> float | None:
        return self._scan.fps

    @property
    def backend(self) -> str:
        return "pyav" if self._fast is None else self._fast.name

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
                images = self._read_counted(unique) if self._scan.timeline is None else self._read_timed(unique)
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
        timeline, begin = self._scan.timeline, start or 0.0
        if timeline is not None:
            times = [(time - timeline.times[0]) * timeline.time_base for time in timeline.times]
        elif self.fps:
            times = [index / self.fps for index in range(self._length)]
        else:
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
        """The reader that `backend` names or prefers, where it is exact for this file."""
        if backend == "pyav":
            return None
        try:
            return open_fast(self._scan, self._source, self._length, None if backend == "auto" else backend)
        except Refused as refusal:
            if backend == "auto":
                return None
            raise VideoError(self.name, f"{refusal}; use backend 'auto' or 'pyav'") from None

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
