"""Folds of videos that are held out together: whole groups where there are groups, otherwise a share of each class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from clipvid.data.manifest import Manifest
from clipvid.data.sampling import keyed_generator


def held_out_folds(manifest: Manifest, folds: int, seed: int) -> tuple[str, list[list[int]]]:
    """Return `group` or `video` for what is held out together, and the indices of the videos of each fold.

    If every video has a group, whole groups are held out, in as many folds as there are groups at most. Otherwise, and
    with one group, the videos of each class are spread over the folds.
    """
    samples = list(manifest.samples)
    groups = {sample.group for sample in samples}
    is_grouped = None not in groups and 1 < len(groups) < len(samples)
    places: list[list[int]] = [[] for _ in range(min(folds, len(groups)) if is_grouped else folds)]
    if is_grouped:
        members: dict[str, list[int]] = {}
        for index, sample in enumerate(samples):
            members.setdefault(str(sample.group), []).append(index)
        for name in shuffled(sorted(members), seed):
            min(places, key=len).extend(members[name])
        return "group", [sorted(fold) for fold in places]
    count = 0
    for own in by_class(manifest, seed):
        for index in own:
            places[count % folds].append(index)
            count += 1
    return "video", [sorted(fold) for fold in places]


def by_class(manifest: Manifest, seed: int) -> list[list[int]]:
    """Return the indices of the videos of each class, in an order drawn by the seed."""
    return [shuffled(own, seed, label) for label, own in places_by_class(manifest).items()]


def places_by_class(manifest: Manifest) -> dict[int, list[int]]:
    """Return the indices of the videos of each class that has any, in the order of the classes.

    A video with several labels counts for its rarest one, and a video without labels for class -1.
    """
    counts = Counter(label for sample in manifest.samples for label in sample.labels or ())
    places: dict[int, list[int]] = {}
    for place, sample in enumerate(manifest.samples):
        label = sample.label if not sample.labels else min(sample.labels, key=lambda own: (counts[own], own))
        places.setdefault(label, []).append(place)
    return dict(sorted(places.items()))


def shuffled(items: Sequence[Any], *key: int) -> list[Any]:
    """Return the items in an order drawn by the key."""
    order = torch.randperm(len(items), generator=keyed_generator(*key))
    return [items[place] for place in order.tolist()]
