"""Videos on web servers and on file systems of fsspec (`hf://`, `s3://`, ...), one local copy at a time.

Copies are kept in a folder of limited size, and the least recently used ones make room for new ones.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol
from urllib.request import urlopen

import fsspec

from clipvid import InputError
from clipvid.data.reader import VideoError
from clipvid.files import cache_folder, hash_key, one_line, replacing

LIMIT = "CLIPVID_VIDEO_CACHE_GIB"
DEFAULT_GIB = 10.0
_SECONDS = 60  # without an answer of a web server
# A larger file is removed after its use. Workers can thus never remove files that others are reading.
_LARGEST_SHARE = 1 / 32
_STALE_SECONDS = 24 * 3600


@contextlib.contextmanager
def local_copy(address: str) -> Iterator[Path]:
    """Yield the path of a copy of a remote file, which may be removed after the block.

    Raises:
        VideoError: The file cannot be read.
        InputError: The limit of the cache is not a number.
    """
    videos = VideoCache.current()
    path, is_kept = videos.fetch(address)
    try:
        yield path
    finally:
        if not is_kept:
            path.unlink(missing_ok=True)


def list_remote(pattern: str, suffixes: tuple[str, ...]) -> list[str]:
    """Return the addresses of the videos in a remote folder or that match a pattern. Web servers have no lists.

    A single file, or an address that cannot be listed, is returned as it is: reading it fails with a message.
    """
    if _is_web(pattern):
        return [pattern]
    try:
        system, place = fsspec.url_to_fs(pattern)
        is_pattern = any(sign in place for sign in "*?[")
        if is_pattern:
            names = system.glob(place)
        elif system.isdir(place):
            names = [name for name in system.find(place) if _is_shown(name.removeprefix(place), suffixes)]
        else:
            return [pattern]
        return [system.unstrip_protocol(name) for name in sorted(names)] or [pattern]
    except Exception:  # each file system raises errors of another library; reading the address reports them
        return [pattern]


def _is_shown(name: str, suffixes: tuple[str, ...]) -> bool:
    parts = name.strip("/").split("/")
    return parts[-1].lower().endswith(suffixes) and not any(part.startswith(".") for part in parts)


def _is_web(address: str) -> bool:
    return address.startswith(("http://", "https://"))


class _RemoteFile(Protocol):
    """Open remote file.

    Attributes:
        key: Hash of what changes when the content changes, or None if that is unknown.
        size: Bytes, or None if unknown.
    """

    key: str | None
    size: int | None

    def copy_to(self, path: Path) -> None:
        """Write the content to a local file."""


class _WebFile:
    """Answer of a web server."""

    def __init__(self, address: str, response: Any) -> None:
        self.response, headers = response, response.headers
        length, marks = headers.get("Content-Length"), [headers.get(name) for name in ("ETag", "Last-Modified")]
        self.size = int(length) if length is not None and length.isdigit() else None
        self.key = hash_key(address, length, *marks) if any(marks) else None

    def copy_to(self, path: Path) -> None:
        """Write the content to a local file."""
        with path.open("wb") as file:
            shutil.copyfileobj(self.response, file, 1 << 20)
            size = file.tell()
        if self.size is not None and size != self.size:
            raise OSError(f"the connection ended after {size:,} of {self.size:,} bytes")


class _SystemFile:
    """File on a file system of fsspec."""

    def __init__(self, address: str) -> None:
        self.system, self.place = fsspec.url_to_fs(address)
        facts = self.system.info(self.place)
        if facts["type"] != "file":
            raise OSError(f"it is a {facts['type']}, not a file")
        self.size: int | None = facts["size"]
        self.key: str | None = hash_key(address, str(self.system.ukey(self.place)))

    def copy_to(self, path: Path) -> None:
        """Write the content to a local file."""
        self.system.get_file(self.place, str(path))


@contextlib.contextmanager
def _opened(address: str) -> Iterator[_RemoteFile]:
    if _is_web(address):
        with urlopen(address, timeout=_SECONDS) as response:
            yield _WebFile(address, response)
    else:
        yield _SystemFile(address)


@dataclass
class VideoCache:
    """Folder of copies of remote files, at most `limit` bytes. Several processes may share it.

    Attributes:
        folder: Folder, created if it does not exist.
        limit: Size in bytes.
    """

    folder: Path
    limit: int
    _unlisted: float = field(default=math.inf, init=False)  # bytes written since the folder was listed

    @classmethod
    def current(cls) -> VideoCache:
        """Return the cache of the environment: `$CLIPVID_CACHE/videos` of `$CLIPVID_VIDEO_CACHE_GIB`.

        Raises:
            InputError: The limit is not a number of at least 0.
        """
        text = os.environ.get(LIMIT, str(DEFAULT_GIB))
        try:
            limit = float(text)
        except ValueError:
            limit = -1.0
        if not 0 <= limit < math.inf:
            raise InputError(f"{LIMIT}={text[:40]!r}: expected a number of GiB, at least 0")
        return _video_cache(cache_folder() / "videos", int(limit * 2**30))

    def fetch(self, address: str) -> tuple[Path, bool]:
        """Return the path of a copy, and False if the caller must remove it.

        Raises:
            VideoError: The file cannot be read.
        """
        try:
            with _opened(address) as remote:
                if remote.key is None or remote.size is None or remote.size > self.limit * _LARGEST_SHARE:
                    return self._copy_once(remote), False
                path = self.folder / remote.key[:2] / remote.key
                if path.exists():
                    os.utime(path)  # the time of last use
                else:
                    self._make_room(remote.size)
                    with replacing(path) as aside:
                        remote.copy_to(aside)
                return path, True
        # Each file system raises errors of another library.
        except Exception as error:
            raise VideoError(address, f"it cannot be downloaded ({one_line(error) or type(error).__name__})") from None

    def _copy_once(self, remote: _RemoteFile) -> Path:
        self._make_room(0)
        path = self.folder / f".{os.getpid()}.{threading.get_ident()}.{time.monotonic_ns()}.partial"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            remote.copy_to(path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path

    def _make_room(self, size: int) -> None:
        """Remove the least recently used copies, and what killed processes have left."""
        self._unlisted += size
        if self._unlisted <= self.limit / 20:  # listing the folder for each file would be slow
            return
        files = []
        for path in (*self.folder.glob("*/*"), *self.folder.glob("**/.*.partial")):
            with contextlib.suppress(OSError):  # another process may remove it
                facts = path.stat()
                if not path.name.startswith("."):
                    files.append((facts.st_mtime, facts.st_size, path))
                elif facts.st_mtime < time.time() - _STALE_SECONDS:
                    path.unlink()
        total, self._unlisted = sum(used for _, used, _ in files), float(size)
        for _, used, path in sorted(files):
            if total + size <= self.limit * 0.9:
                break
            path.unlink(missing_ok=True)
            total -= used


@cache
def _video_cache(folder: Path, limit: int) -> VideoCache:
    return VideoCache(folder, limit)
