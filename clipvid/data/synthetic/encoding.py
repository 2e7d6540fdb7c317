"""Video files of synthetic worlds: written as H.264, and checked."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np

from clipvid import InputError
from clipvid.files import replacing

INTRA_ONLY = {"preset": "veryfast", "x264-params": "qp=18:keyint=1:bframes=0:scenecut=0"}


def write_video(
    path: str | os.PathLike[str], frames: np.ndarray, fps: int, options: dict[str, str] | None = None
) -> None:
    """Write RGB frames as H.264 in mp4, whole or not at all.

    By default every frame is an intra frame at a constant quantizer and does not depend on its neighbors: the
    reversed frames decode to the reversed video, bit for bit.

    Args:
        path: file to write. Missing folders are made.
        frames: uint8 [T, H, W, 3] with H and W even.
        fps: frames per second.
        options: options of the x264 encoder.

    Raises:
        InputError: frames of another shape or type.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise InputError(f"frames: expected uint8 [T, H, W, 3], got {frames.dtype} {list(frames.shape)}")
    write_frames(path, frames, (frames.shape[2], frames.shape[1]), fps, options)


def write_frames(
    path: str | os.PathLike[str],
    frames: Iterable[np.ndarray],
    size: tuple[int, int],
    fps: int,
    options: dict[str, str] | None = None,
) -> None:
    """Write RGB frames uint8 [H, W, 3] of one size (width, height) one by one, see `write_video`."""
    import av

    width, height = size
    if height % 2 or width % 2:
        raise InputError(f"frames of {width}x{height} pixels: H.264 with 4:2:0 color needs even sizes")
    with replacing(Path(path)) as aside, av.open(str(aside), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.thread_count = 1
        stream.options = {**(INTRA_ONLY if options is None else options)}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


@cache
def video_size(path: str, modified: int, num_bytes: int) -> tuple[int, int, int] | None:
    """Return frames, height and width, or None if the file is damaged. A process opens a file once per state."""
    import av

    try:
        with av.open(path) as container:
            stream = container.streams.video[0]
            return stream.frames, stream.height, stream.width
    except (av.FFmpegError, IndexError):
        return None
