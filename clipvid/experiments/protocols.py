"""Protocols of training and evaluation: hold-out, few-shot, base-to-novel, leave-one-group-out.

A protocol converts two manifests into parts. A part contains the training and the test videos of one model. Parts of
one group are evaluated together, and the protocol summarizes the figures of its groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch

from clipvid import InputError
from clipvid.data.lists.places import locate
from clipvid.data.lists.text import read_lines
from clipvid.data.manifest import Manifest, ManifestError, leave_one_group_out
from clipvid.data.sampling import keyed_generator
from clipvid.evaluation.metrics import harmonic_mean, mean_and_spread
from clipvid.experiments.subsets import few_shot_subset, of_classes, published, refuse_several_labels
from clipvid.files import file_name
from clipvid.registry import Choice, Registry

Figures = dict[str, dict[str, Any]]  # by name of the group


@dataclass(frozen=True)
class Part:
    """One model and its test videos.

    Attributes:
        group: Name of the part's group.
        test: Test videos.
        run: Name of the training of the model. Parts may share one.
        train: Training videos, or None without training.
        seed: Seed of the training, or None for that of the recipe.
        shots: Training videos per class, in few-shot.
        half: The tested half of the classes, in base-to-novel.
        places: Index of each test video in the manifest of the whole group, or None if `test` is that manifest.
    """

    group: str
    test: Manifest
    run: str
    train: Manifest | None = None
    seed: int | None = None
    shots: int | None = None
    half: Literal["base", "novel"] | None = None
    places: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Holdout:
    """Training on `data.train` and test on `data.val`.

    Attributes:
        shots: Training videos per class, drawn as in `few_shot`, or null for all.
        seed: Seed of the drawn videos.
    """

    shots: int | None = None
    seed: int = 0
    train_is_asked: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_shots(self.shots)

    def parts(self, train: Manifest | None, test: Manifest, trained: bool) -> list[Part]:
        """Return the only part."""
        if not trained:
            return [Part("all", test, "model")]
        if train is not None and self.shots is not None:
            train = few_shot_subset(train, self.shots, self.seed)
        return [Part("all", test, "model", train, shots=self.shots)]

    def summary(self, parts: Sequence[Part], figures: Figures) -> dict[str, Any]:
        """Return an empty dict, since the figures of the only group are the result."""
        return {}


@dataclass(frozen=True)
class LeaveOneGroupOut:
    """Cross-validation on `data.train` and `data.val` together, with each group (a person, a source) held out in turn.

    The predictions for all videos are evaluated together.

    Attributes:
        folds: Number of sets of groups to hold out, instead of each group alone. Their sizes differ by one group at
            most.
        seed: Seed of the sets and of the drawn videos.
        shots: Training videos per class of each fold, drawn as in `few_shot`, or null for all.
    """

    folds: int | None = None
    seed: int = 0
    shots: int | None = None
    train_is_asked: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.folds is not None and self.folds < 2:
            raise InputError(f"folds={self.folds}: expected at least 2, or null to hold out each group alone")
        _check_shots(self.shots)

    def parts(self, train: Manifest | None, test: Manifest, trained: bool) -> list[Part]:
        """Return a part per fold, or one part with all videos without training.

        Raises:
            ManifestError: A video has no group, or there are fewer groups than folds.
        """
        assert train is not None
        pooled = train.joined(test)
        if not trained:
            return [Part("all", pooled, "model")]
        names = [name for name, _, _ in leave_one_group_out(pooled)]
        return [self._part(pooled, held_out, run) for run, held_out in self._held_out(names)]

    def _part(self, pooled: Manifest, held_out: set[str], run: str) -> Part:
        """Return the part that tests on some groups and trains on the others."""
        is_test = [sample.group in held_out for sample in pooled.samples]
        test, rest = ([place for place, own in enumerate(is_test) if own is held] for held in (True, False))
        train = pooled.subset(rest)
        if self.shots is not None:
            train = few_shot_subset(train, self.shots, self.seed)
        return Part("all", pooled.subset(test), run, train, shots=self.shots, places=tuple(test))

    def _held_out(self, names: list[str]) -> Iterator[tuple[str, set[str]]]:
        """Yield name and groups of every fold."""
        if self.folds is None:
            yield from ((f"fold_{file_name(name)}", {name}) for name in names)
            return
        if self.folds > len(names):
            raise ManifestError(f"folds={self.folds}, but there are {len(names)} groups; choose fewer folds, or null")
        order = torch.randperm(len(names), generator=keyed_generator(self.seed, len(names))).tolist()
        for fold in range(self.folds):
            held_out = {names[place] for place in order[fold :: self.folds]}
            yield f"fold_{fold}_{file_name('_'.join(sorted(held_out)))}", held_out

    def summary(self, parts: Sequence[Part], figures: Figures) -> dict[str, Any]:
        """Return an empty dict, since the figures of the only group are the result."""
        return {}


@dataclass(frozen=True)
class FewShot:
    """Training on `shots` videos of each class, once for each seed.

    Attributes:
        shots: Numbers of training videos per class.
        seeds: Seeds of the trainings and of the subsets.
        lists: File name of published subsets, with `{shots}` and optionally `{seed}`, relative to `data.root` unless
            absolute. A line starts with the name of a video, which is found in `data.train` by its file name. Without
            lists, videos are drawn by (seed, class), and the 2-shot set contains the 1-shot set.
    """

    shots: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16])
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    lists: str | None = None
    train_is_asked: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.shots or not self.seeds or min(self.shots) < 1:
            raise InputError(f"shots={self.shots}, seeds={self.seeds}: expected at least one of each, with shots >= 1")

    def parts(self, train: Manifest | None, test: Manifest, trained: bool) -> list[Part]:
        """Return a part for each number of shots and each seed.

        Raises:
            InputError: The list has several labels per video.
        """
        refuse_several_labels(test, "few-shot training draws the videos of each class")
        if not trained:
            return [Part("K=0", test, "model", shots=0)]
        assert train is not None
        return [
            Part(self.group(shots, seed), test, f"k{shots}_seed{seed}", self._subset(train, shots, seed), seed, shots)
            for shots in self.shots
            for seed in self.seeds
        ]

    @staticmethod
    def group(shots: int, seed: int) -> str:
        """Return the name of the group of one training."""
        return f"K={shots} seed={seed}"

    def _subset(self, train: Manifest, shots: int, seed: int) -> Manifest:
        if self.lists is None:
            return few_shot_subset(train, shots, seed)
        name = locate(train.root, self.lists.format(shots=shots, seed=seed), "few-shot list")
        return published(train, train.root / name, shots)

    def summary(self, parts: Sequence[Part], figures: Figures) -> dict[str, Any]:
        """Return `few_shot`: mean, std and values of top-1 over the seeds, by K."""
        values: dict[str, list[float]] = {}
        for part in parts:
            values.setdefault(f"K={part.shots}", []).append(_top1(figures, part))
        return {"few_shot": {shots: mean_and_spread(accuracies) for shots, accuracies in values.items()}}


@dataclass(frozen=True)
class BaseToNovel:
    """Training on the base classes only, and separate tests of base and novel classes, each half among its names.

    Attributes:
        base: File with the names of the base classes, one per line, relative to `data.root`. By default the half of the
            classes with the most training videos (ties by id), as in ViFi-CLIP (https://arxiv.org/abs/2212.03640).
        shots: Training videos per base class, drawn as in `few_shot`, or null for all.
        seeds: Seeds, with one training each.
    """

    base: str | None = None
    shots: int | None = 16
    seeds: list[int] = field(default_factory=lambda: [0])
    train_is_asked: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.seeds or (self.shots is not None and self.shots < 1):
            raise InputError(f"shots={self.shots}, seeds={self.seeds}: expected at least one of each")

    def parts(self, train: Manifest | None, test: Manifest, trained: bool) -> list[Part]:
        """Return two parts per seed, one for each half of the classes.

        Raises:
            ManifestError: A base class does not exist, or a half has no classes or videos.
            InputError: The list has several labels per video.
        """
        assert train is not None
        refuse_several_labels(train, "base-to-novel divides the videos by class")
        base = self._base(train)
        novel = [info.id for info in train.classes if info.id not in base]
        halves: dict[Literal["base", "novel"], Manifest] = {
            "base": of_classes(test, base),
            "novel": of_classes(test, novel),
        }
        for half, manifest in halves.items():
            if not len(manifest):
                raise ManifestError(f"no video of a {half} class to test on; choose other base classes")
        if not trained:
            return [Part(half, manifest, "model", half=half) for half, manifest in halves.items()]
        base_videos = of_classes(train, base)
        parts = []
        for seed in self.seeds:
            videos = base_videos if self.shots is None else few_shot_subset(base_videos, self.shots, seed)
            for half, manifest in halves.items():
                group = half if len(self.seeds) == 1 else f"{half} seed={seed}"
                parts.append(Part(group, manifest, f"base_seed{seed}", videos, seed, self.shots, half))
        return parts

    def _base(self, train: Manifest) -> list[int]:
        names = train.class_names
        if self.base is not None:
            file = train.root / locate(train.root, self.base, "list of base classes")
            listed = [line.strip() for line in read_lines(file, "list of base classes")]
            unknown = [name for name in listed if name and name not in names]
            if unknown:
                raise ManifestError(f"{file}: {unknown[:5]} are not classes of this data set")
            base = sorted(names.index(name) for name in set(listed) if name)
        else:
            counts = torch.tensor([sample.label for sample in train.samples]).bincount(minlength=len(names)).tolist()
            base = sorted(sorted(range(len(names)), key=lambda i: (-counts[i], i))[: (len(names) + 1) // 2])
        if not 0 < len(base) < len(names):
            raise ManifestError(f"{len(base)} base classes of {len(names)}: base and novel need at least one each")
        return base

    def summary(self, parts: Sequence[Part], figures: Figures) -> dict[str, Any]:
        """Return `base_to_novel`: mean, std and values over the seeds of `base`, `novel` and `harmonic_mean` top-1."""
        top1 = {(part.seed, part.half): _top1(figures, part) for part in parts}
        seeds = list(dict.fromkeys(part.seed for part in parts))
        values = {half: [top1[seed, half] for seed in seeds] for half in ("base", "novel")}
        values["harmonic_mean"] = [harmonic_mean(*pair) for pair in zip(values["base"], values["novel"], strict=True)]
        return {"base_to_novel": {name: mean_and_spread(accuracies) for name, accuracies in values.items()}}


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
    """Return the protocol of a name, or of a mapping with `name` and options."""
    protocol: Protocol = PROTOCOLS.resolve(spec)[1]
    return protocol


def _check_shots(shots: int | None) -> None:
    if shots is not None and shots < 1:
        raise InputError(f"shots={shots}: expected at least 1, or null for all training videos")


def _top1(figures: Figures, part: Part) -> float:
    value: float = figures[part.group]["top1"]["value"]
    return value
