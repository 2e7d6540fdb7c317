"""Flags of single clips (static, dark, with bars, of odd length or rate), and the balance of classes."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from clipvid.inspection.signatures import ClipFacts

_STATIC = 0.6  # gray values; noise of an encoder stays below
_DARK = 12.0  # mean gray value
_BARS = 0.05  # share of the frame
_SHORT_SECONDS, _SHORT_SHARE = 0.5, 0.1  # of the median length
_LONG_SECONDS, _LONG_SHARE = 60.0, 5.0
_SLOW_RATE, _RATE_FACTOR = 5.0, 2.0  # frames per second, and distance from the median rate
_IMBALANCE, _FEW = 10.0, 5  # ratio of the largest to the smallest class, clips of a class


@dataclass(frozen=True)
class Flag:
    """A finding about one clip.

    Attributes:
        index: Number of the clip.
        kind: One of `clipvid.inspection.config.DROPPED` other than `duplicate` and `label`.
        detail: The finding in words.
    """

    index: int
    kind: str
    detail: str


def flag_clips(places: Sequence[int], facts: Sequence[ClipFacts], num_frames: int) -> list[Flag]:
    """Return the flags of readable clips.

    Args:
        places: Numbers of the clips.
        facts: Facts of the clips.
        num_frames: Frames that a model takes; a clip with fewer is short.
    """
    lengths = [own.seconds for own in facts if own.seconds]
    rates = [own.fps for own in facts if own.fps]
    length = statistics.median(lengths) if lengths else None
    rate = statistics.median(rates) if rates else None
    flags: list[Flag] = []
    for index, own in zip(places, facts, strict=True):
        details = {
            "static": f"pixels change by {own.motion:.1f} of 255" if own.motion < _STATIC else "",
            "dark": f"mean brightness {own.brightness:.0f} of 255" if own.brightness < _DARK else "",
            "bars": _bars(own),
            "short": _short(own, length, num_frames),
            "long": _long(own, length),
            "rate": _rate(own, rate),
        }
        flags += [Flag(index, kind, detail) for kind, detail in details.items() if detail]
    return flags


def balance_notes(labels: Sequence[int], class_names: Sequence[str]) -> list[str]:
    """Return sentences about classes with few clips, and about large differences between classes."""
    counts = Counter(labels)
    notes = []
    missing = [name for label, name in enumerate(class_names) if not counts[label]]
    few = [name for label, name in enumerate(class_names) if 0 < counts[label] < _FEW]
    if missing:
        notes.append(f"{len(missing)} classes have no clip: {_listed(missing)}.")
    if few:
        notes.append(f"{len(few)} classes have fewer than {_FEW} clips: {_listed(few)}.")
    if counts and max(counts.values()) >= _IMBALANCE * min(counts.values()):
        (most, high), (least, low) = counts.most_common()[0], counts.most_common()[-1]
        notes.append(
            f"The classes are unbalanced: {class_names[most]!r} has {high} clips, and {class_names[least]!r} has {low}."
        )
    return notes


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _bars(own: ClipFacts) -> str:
    sides = zip(("top", "bottom", "left", "right"), own.bars, strict=True)
    return ", ".join(f"{side} {share:.0%}" for side, share in sides if share >= _BARS)


def _short(own: ClipFacts, median: float | None, num_frames: int) -> str:
    if own.frames < num_frames:
        return f"{own.frames} frames, fewer than the {num_frames} of a clip"
    if own.seconds and (own.seconds < _SHORT_SECONDS or (median and own.seconds < _SHORT_SHARE * median)):
        return f"{own.seconds:.2f} s"
    return ""


def _long(own: ClipFacts, median: float | None) -> str:
    is_long = own.seconds and median and own.seconds > max(_LONG_SECONDS, _LONG_SHARE * median)
    return f"{own.seconds:.0f} s; the median is {median:.0f} s" if is_long else ""


def _rate(own: ClipFacts, median: float | None) -> str:
    if own.varying_rate:
        return "the rate varies by more than a factor of two"
    if own.fps is None or median is None:
        return ""
    is_odd = own.fps < _SLOW_RATE or not median / _RATE_FACTOR <= own.fps <= median * _RATE_FACTOR
    return f"{own.fps:.4g} frames per second; the median is {median:.4g}" if is_odd else ""
