"""Check of the counts that an MP4 file declares, before FFmpeg allocates tables of that size.

Most tables are as long as the file says and are stored in full. A few boxes declare samples without storing a byte for
each, so a file of 1 KB can request gigabytes. These are `stsz` and `trun` with a constant size, `stts`, and edits that
repeat samples.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import BinaryIO

from clipvid import InputError
from clipvid.decoding.limits import Clock, Limits

_CONTAINERS = frozenset(
    (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"moof", b"traf", b"mvex", b"dinf", b"udta", b"tref")
)
_MAX_DEPTH = 10  # as in FFmpeg
_PER_SAMPLE_FIELDS = 0xF00  # flags of trun: duration, size, flags or offset stored for each sample
# More than any camera or editor writes. Further edits would repeat the same samples in memory.
_MAX_EDITS = 1000


@dataclass
class _Track:
    """Counts that the boxes of one track declare."""

    is_sound: bool = False
    samples: int = 0
    has_constant_size: bool = False
    has_unit_times: bool = False
    timed_samples: int = 0
    edits: int = 1


class BoxCheck:
    """Walk over the boxes of an MP4 file that refuses counts above the limits.

    Args:
        file: Seekable file. Its position is not restored.
        limits: `max_frames` bounds the samples of a track.
    """

    def __init__(self, file: BinaryIO, limits: Limits) -> None:
        self._file, self._limits = file, limits
        self._track = _Track()
        self._fragment_samples = 0
        self._clock = Clock(limits.max_seconds)

    def run(self) -> None:
        """Check the whole file. FFmpeg handles files that do not begin with a box.

        Raises:
            InputError: A count is above the limits.
        """
        end = self._file.seek(0, os.SEEK_END)
        self._walk(0, end, 0)

    def _walk(self, start: int, end: int, depth: int) -> None:
        while start + 8 <= end:
            self._clock.check()
            self._file.seek(start)
            head = self._file.read(16)
            size, kind, header = int.from_bytes(head[:4], "big"), head[4:8], 8
            if size == 1:
                size, header = int.from_bytes(head[8:16], "big"), 16
            elif size == 0:
                size = end - start
            if size < header or not (kind.isascii() and len(kind) == 4):
                return
            body, stop = start + header, min(start + size, end)
            if kind == b"cmov":
                raise InputError("its header is compressed, which is not supported; convert it with a current tool")
            if kind == b"trak":
                self._track = _Track()
            if kind in _CONTAINERS and depth < _MAX_DEPTH:
                self._walk(body, stop, depth + 1)
            elif depth:
                self._count(kind, body, stop)
            if kind == b"trak":
                self._check_track()
            start += size

    def _count(self, kind: bytes, body: int, stop: int) -> None:
        """Add the counts of one box."""
        if kind not in (b"hdlr", b"stsz", b"stz2", b"stts", b"trun", b"elst"):
            return
        self._file.seek(body)
        data = self._file.read(min(16, stop - body)).ljust(16, b"\0")
        first, second, third = (int.from_bytes(data[at : at + 4], "big") for at in (4, 8, 12))
        track = self._track
        if kind == b"hdlr":
            track.is_sound = track.is_sound or data[8:12] == b"soun"
        elif kind in (b"stsz", b"stz2"):
            track.samples = max(track.samples, second)
            track.has_constant_size = track.has_constant_size or (kind == b"stsz" and first > 0)
        elif kind == b"stts":
            track.has_unit_times = (first, third) == (1, 1)
            track.timed_samples = max(track.timed_samples, second)
        elif kind == b"elst":
            track.edits = max(track.edits, min(first, (stop - body) // 12))
        elif not int.from_bytes(data[1:4], "big") & _PER_SAMPLE_FIELDS:
            self._fragment_samples += first
            self._limits.check_frames(self._fragment_samples)

    def _check_track(self) -> None:
        track = self._track
        # PCM sound counts single values of one time unit. FFmpeg stores them by chunk.
        if track.is_sound and track.has_constant_size and track.has_unit_times:
            return
        self._limits.check_frames(max(track.samples, track.timed_samples))
        if track.edits > _MAX_EDITS:
            raise InputError(f"it has {track.edits:,} edits; at most {_MAX_EDITS:,} are read")


def check_boxes(file: BinaryIO, limits: Limits) -> None:
    """Raise InputError if the boxes of an MP4 file declare more samples than the limits allow."""
    BoxCheck(file, limits).run()
