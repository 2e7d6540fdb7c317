"""Opening of videos by path or address. Nothing here imports torch, so that exported models run without it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from clipvid.data.reader import Source, VideoError, open_video

_ADDRESS = re.compile(r"(?!file:)[A-Za-z][\w+.-]+://")  # a drive of Windows has one letter


def is_remote(source: object) -> bool:
    """Return True for an address such as `https://...`, `s3://...` or `hf://...`, but not `file://...`."""
    return isinstance(source, str) and _ADDRESS.match(source) is not None


@contextmanager
def open_file(source: Source) -> Iterator[Any]:
    """Open a video as `open_video`, or one at an address. Errors name the address.

    Raises:
        VideoError: The video cannot be read.
    """
    if not isinstance(source, str) or not is_remote(source):
        with open_video(_path(source)) as video:
            yield video
        return

    from clipvid.inference.remote import local_copy  # fsspec is slow to import

    with local_copy(source) as path:
        try:
            with open_video(path) as video:
                video.name = source
                yield video
        except VideoError as error:
            raise VideoError(source, error.reason or str(error)) from None


def _path(source: Source) -> Source:
    """Return the path of a `file://` URL. Other sources are returned unchanged."""
    if isinstance(source, str) and source.startswith("file://"):
        return Path(url2pathname(urlsplit(source).path))
    return source
