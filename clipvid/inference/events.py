"""Events of a timeline: the times in which a class scores high."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Any, NamedTuple

from clipvid import InputError
from clipvid.files import printable
from clipvid.inference.outputs import Timeline


class Event(NamedTuple):
    """Part of a video in which one class scores high.

    Attributes:
        start: Seconds.
        end: Seconds.
        label: Class name.
        score: Mean probability of the class in its windows.
    """

    start: float
    end: float
    label: str
    score: float

    def record(self) -> dict[str, Any]:
        """Return the fields by their names in files."""
        return {"start": self.start, "end": self.end, "class": self.label, "score": self.score}


def find_events(timeline: Timeline, labels: Sequence[str], threshold: float = 0.5) -> list[Event]:
    """Return the events of a timeline, in the order of their starts.

    An event is a series of windows in which a class has at least the probability `threshold`. A window counts for the
    time around its center, up to the middle between it and the next one. The first one counts from the start of the
    video, and the last one to its end.

    Args:
        timeline: See `clipvid.Predictor.timeline`.
        labels: Class names.
        threshold: Probability, above 0 and at most 1.

    Raises:
        InputError: The threshold is out of range.
    """
    if not 0 < threshold <= 1:
        raise InputError(f"threshold={threshold}: expected a probability above 0 and at most 1")
    times = timeline.times
    # The first window begins with the video, and the last one ends with it.
    edges = [0.0, *((left + right) / 2 for left, right in pairwise(times)), times[-1] + times[0]]
    events = []
    for number, label in enumerate(labels):
        scores = timeline.scores[:, number].tolist()
        first = 0
        for is_high, group in groupby(scores, lambda score: score >= threshold):
            own = list(group)
            if is_high:
                events.append(Event(edges[first], edges[first + len(own)], label, sum(own) / len(own)))
            first += len(own)
    return sorted(events, key=lambda event: (event.start, event.end))


def events_table(events: Sequence[Event]) -> str:
    """Return CSV with the columns start, end, class and score. Times and scores have three decimals."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("start", "end", "class", "score"))
    for event in events:
        writer.writerow((f"{event.start:.3f}", f"{event.end:.3f}", printable(event.label), f"{event.score:.3f}"))
    return out.getvalue()
