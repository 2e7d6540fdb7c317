"""How a model is trained and asked: hold-out, few-shot, base-to-novel, leave-one-group-out.

A protocol turns two manifests into parts, each with what is trained on (if anything is) and what is asked; parts of
one group are answered together, and the protocol says what their figures come to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import torch

from clipvid import InputError
from clipvid.data.lists.classes import read_lines
from clipvid.data.lists.samples import Sample
from clipvid.data.manifest import ClassInfo, Manifest, ManifestError, leave_one_group_out
from clipvid.data.sampling import keyed_generator
from clipvid.evaluation.metrics import harmonic_mean, mean_and_spread
from clipvid.registry import Choice, Registry


@dataclass(frozen=True)
class Part:
    """What is asked of one model. run: name of the training that makes it (parts may share one); train: its videos,
    None where nothing is trained; seed: of the training, None for the recipe's own."""

    group: str
    test: Manifest
    run: str
    train: Manifest | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Holdout:
    """Train on `data.train`, ask about `data.val`."""

    train_is_asked: ClassVar[bool] = False

    def parts(self, train: Manifest | None, test: Manifest, trained: bool) -> list[Part]:
        return [Part("all", test, "model", train if trained else None)]

    def summary(self, groups: dict[str, dict[str, Any]]) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class LeaveOneGroupOut:
    """Pool `data.train` and `data.val`, and hold out each group (a person, a source) in turn; the answers about all
    videos are taken together.

    folds: hold out so many sets of groups, of sizes that differ by one at most, in place of each group alone: fewer
        trainings, on fewer videos each. seed: draws the sets.
    """

    folds: int | None = None
    seed: int = 0
    train_is_asked: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.folds is not None and self.folds < 2:
            raise InputError(f"folds={self.folds}: expected at least 2, or null to hold out each group alone")

    def parts(self, train: Manifest | None, test: Manifest, trained: bool) -> list[Part]:
        assert train is not None
        pooled = train.joined(test)
        if not trained:
            return [Part("all", pooled, "model")]
        alone = list(leave_one_group_out(pooled))
        if self.folds is None:
            return [Part("all", held_out, f"fold_{group}", rest) for group, rest, held_out in alone]
        if self.folds > len(alone):
            raise ManifestError(f"folds={self.folds}, but there are {len(alone)} groups; ask for fewer, or for null")
        names = [group for group, _, _ in alone]
        order = torch.randperm(len(names), generator=keyed_generator(self.seed, len(names))).tolist()
        sets = [{names[place] for place in order[fold :: self.folds]} for fold in range(self.folds)]
        return [Part("all", *_divided(pooled, held_out, number)) for number, held_out in enumerate(sets)]

    def summary(self, groups: dict[str, dict[str, Any]]) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class FewShot:
    """Train on `shots` videos of each class, once for each seed; mean and spread over the seeds.

    lists: published subsets, a file name with `{shots}` and perhaps `{seed}` in it, from `data.root` unless absolute;
        its lines start with the name of a video, which is searched in `data.train` by its file name. Without, the
        videos are drawn, keyed by (seed, class): the 2-shot set holds the 1-shot set.
    """

    shots: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16])
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    lists: str | None = None
    train_is_asked: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.shots or not self.seeds or min(self.shots) < 1:
            raise InputError(f"shots={self.shots}, seeds={self.seeds}: expected at least one of each, shots from 1 up")

    def parts(self, train: Manifest | None, test: Manifest, trained: bool) -> list[Part]:
        if not trained:
            return [Part("K=0", test, "model")]
        assert train is not None
        return [
            Part(f"K={shots} seed={seed}", test, f"k{shots}_seed{seed}", self._subset(train, shots, seed), seed)
            for shots in self.shots
            for seed in self.seeds
        ]

    def _subset(self, train: Manifest, shots: int, seed: int) -> Manifest:
        if self.lists is None:
            return few_shot(train, shots, seed)
        return published(train, train.root / self.lists.format(shots=shots, seed=seed), shots)

    def summary(self, groups: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """`few_shot`: by K, mean, std and values of top-1 over the seeds."""
        runs = [(name.split()[0], figures["top1"]["value"]) for name, figures in groups.items()]
        values = {shots: [value for _, value in found] for shots, found in groupby(runs, key=lambda run: run[0])}
        return {"few_shot": {shots: mean_and_spread(found) for shots, found in values.items()}}


@dataclass(frozen=True)
class BaseToNovel:
    """Train on the base classes alone; ask about them among themselves, and about the novel ones among themselves.

    base: file of the names of the base classes, one per line, from `data.root`. Without, they are the half of the
        classes that has the most training videos (ties by id), as in ViFi-CLIP (https://arxiv.org/abs/2212.03640).
    shots: training videos per base class, drawn as in `few_shot`; null for all.
    seeds: one training for each.
    """

    base: str | None = None
    shots: int | None = 16
    seeds: list[int] = field(default_factory=lambda: [0])
    train_is_asked: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.seeds or (self.shots is not None and self.shots < 1):
            raise InputError(f"shots={self.shots}, seeds={self.seeds}: expected at least one of each")

    def parts(self, train: Manifest | None, test: Manifest, trained: bool) -> list[Part]:
        assert train is not None
        base = self._base(train)
        novel = [info.id for info in train.classes if info.id not in base]
        asked = {"base": of_classes(test, base), "novel": of_classes(test, novel)}
        for name, manifest in asked.items():
            if not len(manifest):
                raise ManifestError(f"no video of a {name} class to ask about; choose other base classes")
        if not trained:
            return [Part(name, manifest, "model") for name, manifest in asked.items()]
        known = of_classes(train, base)
        learnt = {seed: known if self.shots is None else few_shot(known, self.shots, seed) for seed in self.seeds}
        return [
            Part(name if len(self.seeds) == 1 else f"{name} seed={seed}", manifest, f"base_seed{seed}", videos, seed)
            for seed, videos in learnt.items()
            for name, manifest in asked.items()
        ]

    def _base(self, train: Manifest) -> list[int]:
        names = train.class_names
        if self.base is not None:
            wanted = [line.strip() for line in read_lines(train.root / self.base, "list of base classes")]
            unknown = [name for name in wanted if name and name not in names]
            if unknown:
                raise ManifestError(f"{train.root / self.base}: {unknown[:5]} are no classes of this data set")
            base = sorted(names.index(name) for name in set(wanted) if name)
        else:
            counts = torch.tensor([sample.label for sample in train.samples]).bincount(minlength=len(names)).tolist()
            base = sorted(sorted(range(len(names)), key=lambda i: (-counts[i], i))[: (len(names) + 1) // 2])
        if not 0 < len(base) < len(names):
            raise ManifestError(f"{len(base)} base classes of {len(names)}: base and novel need one at least")
        return base

    def summary(self, groups: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """`base_to_novel`: mean, std and values over the seeds of `base`, `novel` and `harmonic_mean` top-1."""
        values = [figures["top1"]["value"] for figures in groups.values()]
        base, novel = values[::2], values[1::2]
        means = [harmonic_mean(*pair) for pair in zip(base, novel, strict=True)]
        named = {"base": base, "novel": novel, "harmonic_mean": means}
        return {"base_to_novel": {name: mean_and_spread(found) for name, found in named.items()}}


Protocol = Holdout | LeaveOneGroupOut | FewShot | BaseToNovel
PROTOCOLS = Registry(
    "protocol",
    {
        "holdout": Holdout,
        "leave_one_group_out": LeaveOneGroupOut,
        "few_shot": FewShot,
        "base_to_novel": BaseToNovel,
    },
)


def build_protocol(spec: Choice) -> Protocol:
    """The protocol by name, or by a mapping of `name` and options."""
    protocol: Protocol = PROTOCOLS.resolve(spec)[1]
    return protocol


def few_shot(train: Manifest, shots: int, seed: int) -> Manifest:
    """`shots` videos of each class that has any, drawn by (seed, class), in the order of the manifest.

    Raises ManifestError where a class has fewer.
    """
    chosen: list[int] = []
    for label, places in _by_class(train).items():
        if len(places) < shots:
            name = train.class_names[label]
            raise ManifestError(f"{shots} shots: the class {name!r} has {len(places)} training videos; ask for fewer")
        order = torch.randperm(len(places), generator=keyed_generator(seed, label))
        chosen += [places[i] for i in order[:shots].tolist()]
    return train.subset(sorted(chosen))


def published(train: Manifest, file: Path, shots: int) -> Manifest:
    """The videos of `train` that a published list names, whatever folders and suffixes are written there.

    Raises ManifestError for videos that are not to be found, are ambiguous, or are not `shots` per class.
    """
    names = [Path(line.split(",")[0].split()[0]).stem for line in read_lines(file, "few-shot list") if line.strip()]
    places: dict[str, list[int]] = {}
    for place, path in enumerate(train.paths()):
        places.setdefault(Path(path).stem, []).append(place)
    lacking = [name for name in names if len(places.get(name, [])) != 1]
    if lacking:
        raise ManifestError(
            f"{file} names {len(lacking)} videos that data.train does not have, or has twice, such as {lacking[:3]}; "
            "bring them, or leave `lists` out to have subsets drawn"
        )
    subset = train.subset([places[name][0] for name in names])
    counts = {len(found) for found in _by_class(subset).values()}
    if counts != {shots}:
        raise ManifestError(f"{file} has {sorted(counts)} videos per class, expected {shots}")
    return subset


def of_classes(manifest: Manifest, ids: Sequence[int]) -> Manifest:
    """The videos of some classes, which are counted anew from 0; an attribute `partner` follows, -1 if it is gone."""
    place = {old: new for new, old in enumerate(ids)}
    classes = tuple(_renumbered(manifest.classes[old], new, place) for old, new in place.items())
    samples: tuple[Sample, ...] = tuple(
        replace(sample, label=place[sample.label]) for sample in manifest.samples if sample.label in place
    )
    return Manifest(samples, classes, manifest.root)


def _divided(manifest: Manifest, held_out: set[str], number: int) -> tuple[Manifest, str, Manifest]:
    """The videos of some groups, the name of their fold, and the videos of all others."""
    name = f"fold_{number}_{'_'.join(sorted(held_out))[:50]}"
    places: tuple[list[int], list[int]] = ([], [])
    for place, sample in enumerate(manifest.samples):
        places[sample.group in held_out].append(place)
    return manifest.subset(places[True]), name, manifest.subset(places[False])


def _renumbered(info: ClassInfo, new: int, place: dict[int, int]) -> ClassInfo:
    attributes = dict(info.attributes)
    if "partner" in attributes:
        attributes["partner"] = str(place.get(int(attributes["partner"]), -1))
    return ClassInfo(new, info.name, attributes)


def _by_class(manifest: Manifest) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for place, sample in enumerate(manifest.samples):
        found.setdefault(sample.label, []).append(place)
    return dict(sorted(found.items()))
