"""Findings of an inspection by number of clip, and which clips a fixed list leaves out.

Shapes: N clips, K classes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from clipvid.inspection.cleanliness import Flag, balance_notes, flag_clips
from clipvid.inspection.clips import ClipList
from clipvid.inspection.duplicates import Duplicate, clusters, find_duplicates
from clipvid.inspection.features import Readings
from clipvid.inspection.labels import ConfusedPair, Suspect, inseparable_pairs, rank_labels
from clipvid.inspection.probes import probabilities
from clipvid.inspection.tasks import ProbeTask
from clipvid.inspection.time import BAG, ORDERED

TRUSTED = 0.8  # accuracy of a probe below which its errors outnumber those of the labels
_DRAWS = 5  # of folds, over which scores are averaged
_NEARLY = 0.9  # share of the accuracy of the better probe above which the other one counts too


@dataclass(frozen=True)
class LabelCheck:
    """Labels against out-of-fold probabilities.

    Attributes:
        accuracy: Share of clips whose label has the highest probability.
        suspects: All clips, the most suspicious label first; `place` is the number of the clip.
        pairs: Classes that the probe cannot separate.
        unit: `group` or `clip`, what is held out together.
    """

    accuracy: float
    suspects: list[Suspect]
    pairs: list[ConfusedPair]
    unit: str

    @property
    def is_trusted(self) -> bool:
        """True if the probe is right often enough for clips to be left out because of it."""
        return self.accuracy >= TRUSTED

    @property
    def flagged(self) -> list[Suspect]:
        """Return the suspects whose label is likely wrong."""
        return [suspect for suspect in self.suspects if suspect.is_flagged]


@dataclass(frozen=True)
class Findings:
    """Everything about the cleanliness of the clips. Clips are numbered as in the `ClipList`.

    Attributes:
        broken: Reason by number of each unreadable clip.
        duplicates: Copies.
        flags: Flags of single clips.
        labels: Check of the labels, or None without labels.
        notes: Sentences about the classes, and about what could not be checked.
    """

    broken: dict[int, str]
    duplicates: list[Duplicate]
    flags: list[Flag]
    labels: LabelCheck | None
    notes: list[str] = field(default_factory=list)

    def across(self, clips: ClipList) -> list[Duplicate]:
        """Return the copies of which one is in each split."""
        splits = clips.split_names()
        return [copy for copy in self.duplicates if splits[copy.first] != splits[copy.second]]

    def conflicts(self, clips: ClipList) -> list[Duplicate]:
        """Return the copies with different labels, of which one must be wrong."""
        labels = clips.labels()
        return [copy for copy in self.duplicates if labels[copy.first] != labels[copy.second]]

    def dropped(self, clips: ClipList, kinds: Collection[str]) -> set[int]:
        """Return the clips that a list without these kinds of findings leaves out."""
        result = {flag.index for flag in self.flags if flag.kind in kinds}
        result |= set(self.broken) if "broken" in kinds else set()
        if "label" in kinds and self.labels is not None and self.labels.is_trusted:
            result |= {suspect.place for suspect in self.labels.flagged}
        return result | (self._spare_copies(clips, result) if "duplicate" in kinds else set())

    def _spare_copies(self, clips: ClipList, dropped: Collection[int]) -> set[int]:
        """Return all but one of the clips of each content. One of `val` stays, if it is not dropped already."""
        splits, members = clips.split_names(), defaultdict(list)
        for index, first in enumerate(clusters(self.duplicates, len(clips))):
            members[first].append(index)
        spare: set[int] = set()
        for own in members.values():
            kept = min(own, key=lambda index: (index in dropped, splits[index] != "val", index))
            spare |= {index for index in own if index != kept}
        return spare

    def record(self, clips: ClipList) -> dict[str, Any]:
        """Return the findings as JSON, with names in place of numbers."""
        names = clips.class_names
        labels = self.labels
        copies = [
            asdict(copy) | {"first": clips.name(copy.first), "second": clips.name(copy.second)}
            for copy in self.duplicates
        ]
        return {
            "broken": [{"path": clips.name(index), "reason": reason} for index, reason in sorted(self.broken.items())],
            "duplicates": copies,
            "flags": [asdict(flag) | {"index": clips.name(flag.index)} for flag in self.flags],
            "notes": self.notes,
            "labels": None
            if labels is None
            else {
                "accuracy": labels.accuracy,
                "unit": labels.unit,
                "suspects": [
                    {
                        "path": clips.name(suspect.place),
                        "label": names[suspect.label],
                        "suggested": names[suspect.suggested],
                        "margin": suspect.margin,
                        "evidence": suspect.evidence,
                    }
                    for suspect in labels.flagged
                ],
                "inseparable": [
                    asdict(pair) | {"first": names[pair.first], "second": names[pair.second]} for pair in labels.pairs
                ],
            },
        }


def find_all(
    clips: ClipList, readings: Readings, copies: list[Duplicate], task: ProbeTask | str, num_frames: int
) -> Findings:
    """Return all findings.

    Args:
        clips: The clips.
        readings: Their features and signatures.
        copies: Copies among them.
        task: Clips for probes, or the reason why there are none.
        num_frames: Frames of a clip.
    """
    notes = balance_notes(clips.labels(), clips.class_names) if clips.is_labeled else []
    if isinstance(task, str):
        notes.append(task)
    check = None if isinstance(task, str) else check_labels(task)
    flags = flag_clips(readings.places, readings.facts, num_frames)
    return Findings(readings.failures, copies, flags, check, notes)


def find_copies(readings: Readings) -> list[Duplicate]:
    """Return the copies among the readable clips, by number of clip."""
    places = readings.places
    return [
        replace(copy, first=places[copy.first], second=places[copy.second])
        for copy in find_duplicates(readings.signatures, readings.facts)
    ]


def check_labels(task: ProbeTask) -> LabelCheck:
    """Return the check of the labels by probes of averaged and of ordered frames, or by one that is clearly better.

    Scores are averaged over these probes and over several draws of folds. Errors by chance, such as those of a clip
    near a border between classes, then weigh less.
    """
    hits = {name: float(task.hits(task.scores[name].scores).mean()) for name in (BAG, ORDERED)}
    names = [name for name in hits if hits[name] >= _NEARLY * max(hits.values())]
    scores = torch.stack([task.averaged_scores(name, _DRAWS) for name in names]).mean(dim=0)
    shares = probabilities(scores, task.labels)
    suspects = [replace(own, place=task.places[own.place]) for own in rank_labels(shares, task.labels)]
    accuracy = float(task.hits(scores).mean())
    return LabelCheck(accuracy, suspects, inseparable_pairs(shares, task.labels), task.unit)
