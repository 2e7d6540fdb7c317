"""Frames of a video in presentation order, from its packets."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Packet(NamedTuple):
    """Packet properties that the walk stores, with times in the stream's unit and the size in bytes.

    Decoding can start at a keyframe that `resets`.
    """

    pts: int | None
    dts: int | None
    size: int
    is_keyframe: bool
    is_discard: bool
    resets: bool


class Keyframe(NamedTuple):
    """Packet at which decoding can start, and the target time of a seek that lands on it or before it."""

    pts: int
    seek_time: int


@dataclass(frozen=True)
class FrameTimes:
    """Frames in presentation order.

    Attributes:
        times: Times in ticks of `time_base` seconds.
        entries: For each frame, the index in `keyframes` from which to decode it.
        keyframes: Packets at which decoding can start.
        closed_gops: True if no frame needs data from before its keyframe.
        time_base: Length of a tick in seconds.
    """

    times: Sequence[int]
    entries: Sequence[int]
    keyframes: list[Keyframe]
    closed_gops: bool
    time_base: float

    @functools.cached_property
    def rate_varies(self) -> bool:
        """See the function `rate_varies`."""
        return rate_varies(np.asarray(self.times) * self.time_base)


def order_frames(packets: list[Packet], time_base: float) -> FrameTimes | None:
    """Return the frames of the packets in presentation order, or None if time stamps do not distinguish them."""
    if len({packet.pts for packet in packets}) < len(packets) or not packets[0].resets:
        return None
    keyframes: list[Keyframe] = []
    frames: list[tuple[int, int]] = []
    closed_gops = all(packet.resets for packet in packets if packet.is_keyframe)
    for packet in packets:
        if packet.pts is None or (packet.resets and keyframes and packet.pts < keyframes[-1].pts):
            return None
        if packet.resets:
            keyframes.append(Keyframe(packet.pts, packet.pts if packet.dts is None else min(packet.pts, packet.dts)))
        entry = len(keyframes) - 1
        # A leading picture is shown before the keyframe it follows, and may need earlier packets.
        while entry >= 0 and packet.pts < keyframes[entry].pts:
            entry, closed_gops = entry - 1, False
        if entry < 0:
            return None
        if not packet.is_discard:
            frames.append((packet.pts, entry))
    frames.sort()
    times, entries = (array("q", (frame[part] for frame in frames)) for part in (0, 1))
    return FrameTimes(times, entries, keyframes, closed_gops, time_base)


def rate_varies(times: Sequence[float] | np.ndarray) -> bool:
    """Return True if the frame rate of some parts is over twice that of others, each a tenth of the time or more.

    Args:
        times: presentation times of the frames in seconds, in order.
    """
    if len(times) < 3:
        return False
    gaps = np.sort(np.diff(np.asarray(times, dtype=np.float64)))
    passed = gaps.cumsum()
    short, long = (gaps[np.searchsorted(passed, share * passed[-1])] for share in (0.1, 0.9))
    # Times in files are rounded, to 1 ms in some.
    return bool(long > 2.1 * short + 0.002)
