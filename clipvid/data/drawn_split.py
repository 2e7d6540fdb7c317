"""Validation videos drawn from the training videos, where no list of them is given."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import replace
from pathlib import Path

from clipvid import InputError
from clipvid.data.config import DataConfig
from clipvid.data.folds import held_out_folds
from clipvid.data.lists.places import locate
from clipvid.data.lists.several import LABELS
from clipvid.data.manifest import Manifest
from clipvid.files import write_text
from clipvid.registry import Choice

SPLIT = "split.csv"


def without_missing_list(config: DataConfig) -> DataConfig:
    """Return the config with `val` null if `val` has its default, no such list exists, and `train` does exist."""
    if config.val != DataConfig.val or config.world is not None or _exists(config.root, str(config.val)):
        return config
    return replace(config, val=None) if _exists(config.root, config.train) else config


def _exists(root: str, source: Choice) -> bool:
    """Return False if nothing has the name of a list or folder. Other sources say it themselves."""
    if not isinstance(source, str) or "{" in source or "*" in source:
        return True
    try:
        locate(Path(root), source, "list")
    except FileNotFoundError:
        return False
    return True


def draw_split(manifest: Manifest, config: DataConfig) -> tuple[Manifest, Manifest]:
    """Return training and validation videos. Whole groups are held out, at least one, if every video has a group.

    Raises:
        InputError: There are too few videos, or all are of one group.
    """
    folds = round(1 / config.val_share)
    groups = {sample.group for sample in manifest.samples}
    if None not in groups and len(groups) == 1 < len(manifest):
        raise InputError(
            f"data.val is not given, and all {len(manifest)} videos are of one group, {groups.pop()!r}, so that no "
            "whole group can be held out. Correct data.group_pattern or the column group, or give data.val"
        )
    held_out = set(held_out_folds(manifest, folds, config.split_seed)[1][0])
    if not 0 < len(held_out) < len(manifest):
        raise InputError(
            f"data.val is not given, and {len(manifest)} videos are too few to hold out one in {folds}; add videos, "
            "or give data.val"
        )
    train, val = ([i for i in range(len(manifest)) if (i in held_out) is held] for held in (False, True))
    return manifest.subset(train), manifest.subset(val)


def describe_split(train: Manifest, val: Manifest) -> str:
    """Return a sentence that says how a drawn split is divided."""
    groups = [{sample.group for sample in own.samples} for own in (train, val)]
    is_grouped = not groups[0] & groups[1]
    line = f"data.val is not given: {len(val)} of {len(train) + len(val)} videos are held out for it"
    if is_grouped:
        line = f"{line}, those of {len(groups[1])} whole groups of {len(groups[0] | groups[1])}"
        unseen = ", ".join(repr(train.class_names[label]) for label in sorted(_classes(val) - _classes(train)))
        return line if not unseen else f"{line}. Warning: these have all videos of {unseen}, which training never sees"
    return (
        f"{line}, a share of each class. If several clips show the same person or scene, name it with "
        "data.group_pattern; otherwise the result is too good"
    )


def _classes(manifest: Manifest) -> set[int]:
    """Return the ids of the classes that have a video."""
    return {
        label for sample in manifest.samples for label in ((sample.label,) if sample.labels is None else sample.labels)
    }


def split_root(train: Manifest, val: Manifest) -> str:
    """Return the folder of all videos, which the paths of a written split are relative to."""
    return os.path.commonpath(
        [os.path.dirname(os.path.abspath(own.file(sample))) for own in (train, val) for sample in own.samples]
    )


def write_split(path: Path, train: Manifest, val: Manifest) -> str:
    """Write a list of both splits, and return the folder that its paths are relative to."""
    root = split_root(train, val)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["path", LABELS if train.is_multi_label else "label", "split"])
    for split, manifest in (("train", train), ("val", val)):
        for sample in manifest.samples:
            name = Path(os.path.relpath(os.path.abspath(manifest.file(sample)), root)).as_posix()
            rows.writerow([name, manifest.label_text(sample), split])
    write_text(path, text.getvalue())
    return root
