"""Subsets of a manifest: few videos of each class, published few-shot lists, and some of the classes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from clipvid import InputError
from clipvid.data.folds import places_by_class, shuffled
from clipvid.data.lists.delimited import split_line
from clipvid.data.lists.samples import Sample
from clipvid.data.lists.text import read_lines
from clipvid.data.manifest import ClassInfo, Manifest, ManifestError


def few_shot_subset(train: Manifest, shots: int, seed: int) -> Manifest:
    """Return `shots` videos of each class that has any, drawn by (seed, class), in the order of the manifest.

    Raises:
        ManifestError: A class has fewer videos.
        InputError: The list has several labels per video.
    """
    refuse_several_labels(train, "few-shot training draws the videos of each class")
    chosen: list[int] = []
    for label, places in places_by_class(train).items():
        if len(places) < shots:
            name = train.class_names[label]
            raise ManifestError(f"{shots} shots: the class {name!r} has {len(places)} training videos; choose fewer")
        chosen += shuffled(places, seed, label)[:shots]
    return train.subset(sorted(chosen))


def refuse_several_labels(manifest: Manifest, reason: str) -> None:
    """Raise InputError for a list with several labels per video."""
    if manifest.is_multi_label:
        raise InputError(
            f"the list has several labels per video (column labels), but {reason}; use holdout or leave_one_group_out, "
            "or a list with one label per video"
        )


def published(train: Manifest, file: Path, shots: int) -> Manifest:
    """Return the videos of `train` in a published list, matched without folders and suffixes.

    Raises:
        ManifestError: `train` does not have a video or has it twice, or the number per class is not `shots`.
    """
    places: dict[str, list[int]] = {}
    for place, path in enumerate(train.paths()):
        places.setdefault(Path(path).stem, []).append(place)
    names = [_listed_stem(line, places) for line in read_lines(file, "few-shot list") if line.strip()]
    lacking = [name for name in names if len(places.get(name, [])) != 1]
    if lacking:
        raise ManifestError(
            f"{file} names {len(lacking)} videos that data.train does not have, or has twice, such as {lacking[:3]}; "
            "add them, or remove `lists` to draw subsets"
        )
    subset = train.subset([places[name][0] for name in names])
    counts = {len(chosen) for chosen in places_by_class(subset).values()}
    if counts != {shots}:
        raise ManifestError(f"{file} has {sorted(counts)} videos per class, expected {shots}")
    return subset


def _listed_stem(line: str, stems: dict[str, list[int]]) -> str:
    """Return the file name, without folder and suffix, at the start of a line of a list.

    The name may contain spaces and commas. The longest prefix of the line that is in `stems` is used.
    """
    text = line.strip()
    quoted = split_line(text, ",")[:1]
    starts = [text, *quoted, *(text[: end.start()] for end in reversed(list(re.finditer(r"[\s,]+", text))))]
    names = (name for start in starts for name in (Path(start).name, Path(start).stem))
    return next((name for name in names if name in stems), Path(text).stem)


def of_classes(manifest: Manifest, ids: Sequence[int]) -> Manifest:
    """Return the videos of some classes, renumbered from 0.

    An attribute `partner` is renumbered too, and becomes -1 if the partner is excluded.
    """
    place = {old: new for new, old in enumerate(ids)}
    classes = tuple(_renumbered(manifest.classes[old], new, place) for old, new in place.items())
    samples: tuple[Sample, ...] = tuple(
        replace(sample, label=place[sample.label]) for sample in manifest.samples if sample.label in place
    )
    return Manifest(samples, classes, manifest.root)


def _renumbered(info: ClassInfo, new: int, place: dict[int, int]) -> ClassInfo:
    attributes = dict(info.attributes)
    if "partner" in attributes:
        attributes["partner"] = str(place.get(int(attributes["partner"]), -1))
    return ClassInfo(new, info.name, attributes)
