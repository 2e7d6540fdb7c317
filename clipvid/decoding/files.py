"""Opening of files for FFmpeg: regular, already open, nameless, and of an allowed container format."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from clipvid import InputError

# Demuxers that read one file and open no other. FFmpeg checks its detection against the list before demuxing.
# Excluded are playlists (concat, dash, hls, ...), references to other files (image2, sdp, ...), text and sound.
ALLOWED_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,mpegts,mpeg,mpegvideo,h261,h263,h264,hevc,vvc,m4v,av1,obu,ivf,vc1,"
    "vc1test,dirac,dnxhd,cavsvideo,avs2,avs3,asf,asf_o,ogg,rm,nut,mxf,gxf,wtv,dv,dhav,nsv,nuv,yuv4mpegpipe,mjpeg,"
    "mpjpeg,gif,apng,webp_anim,jpeg_pipe,png_pipe,bmp_pipe,webp_pipe,tiff_pipe,gif_pipe"
)
# Names of files that are taken for videos in a folder, a pattern or a shard.
VIDEO_SUFFIXES: frozenset[str] = frozenset(
    f".{suffix}"
    for suffix in (
        *("mp4", "avi", "mkv", "webm", "mov", "m4v", "mpg", "mpeg", "ts", "m2ts", "mts", "flv", "f4v", "asf", "mxf"),
        *("wmv", "gif", "3gp", "3g2", "ogv", "vob", "m2v", "h264", "264", "hevc", "265", "av1", "ivf", "y4m", "mjpeg"),
    )
)
_PLAYLISTS = (b"ffconcat", b"#EXTM3U", b"<?xml", b"<MPD", b"v=0")
_HEAD_BYTES = 512
_BINARY_HEADS = (b"YUV4MPEG2",)  # binary formats with a text header


@dataclass(frozen=True)
class NamelessFile:
    """Methods of an open file that PyAV calls. Without a name, demuxers cannot look for files next to it."""

    read: object
    seek: object
    tell: object


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file, unbuffered. Pipes, devices and sockets are refused without blocking.

    Raises:
        InputError: The file does not exist or is not a regular file.
        OSError: The file cannot be opened.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        # Check before opening, since opening some devices has side effects. The check of the descriptor is decisive.
        regular = stat.S_ISREG(os.stat(path).st_mode)
        descriptor = os.open(path, flags) if regular else -1
    except (FileNotFoundError, NotADirectoryError):
        raise InputError("no such file") from None
    if regular and not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        regular = False
    if not regular:
        raise InputError("it is not a regular file")
    return os.fdopen(descriptor, "rb", buffering=0)  # FFmpeg buffers


@contextmanager
def opened_binary(source: str | bytes) -> Iterator[BinaryIO]:
    """Open a path or the bytes of a file, positioned at the start.

    Raises:
        InputError: The file is not a regular file, or is text.
    """
    with open_regular(source) if isinstance(source, str) else io.BytesIO(source) as file:
        _check_binary(file.read(_HEAD_BYTES))
        file.seek(0)
        yield file


def _check_binary(head: bytes) -> None:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(_PLAYLISTS):
        raise InputError("it is a playlist of other files, not a video")
    if not head or start.startswith(_BINARY_HEADS):
        return
    # The last character may be cut.
    text = head.decode("utf-8", errors="ignore")
    if len(text.encode()) >= len(head) - 3 and all(sign.isprintable() or sign.isspace() for sign in text):
        raise InputError("it is a text file, not a video")
