"""The clips of one or two splits as one numbered list, with the classes and the split of each."""

from __future__ import annotations

import csv
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipvid import InputError
from clipvid.data.config import DataConfig
from clipvid.data.lists.places import locate
from clipvid.data.lists.samples import ClassInfo, Sample
from clipvid.data.manifest import Manifest, checked_rows, load_manifest
from clipvid.data.scan import AnyClass, EveryVideo
from clipvid.files import replacing
from clipvid.inspection.config import InspectConfig
from clipvid.registry import Choice

UNLABELED = "no label"


@dataclass(frozen=True)
class ClipList:
    """Clips of `train`, followed by those of `val`.

    Attributes:
        splits: Manifests by name. Both have the same classes.
        is_labeled: False if the source has no labels. All clips are then of one class.
    """

    splits: dict[str, Manifest]
    is_labeled: bool

    def __len__(self) -> int:
        return sum(map(len, self.splits.values()))

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in id order."""
        return next(iter(self.splits.values())).class_names

    def place(self, index: int) -> tuple[str, Manifest, int]:
        """Return split, manifest and number in the manifest of a clip."""
        for split, manifest in self.splits.items():
            if index < len(manifest):
                return split, manifest, index
            index -= len(manifest)
        raise IndexError(index)

    def sample(self, index: int) -> Sample:
        """Return a clip."""
        _, manifest, place = self.place(index)
        return manifest.samples[place]

    def name(self, index: int) -> str:
        """Return the path of a clip, after its split if there are two."""
        split, manifest, place = self.place(index)
        path = manifest.samples[place].path
        return f"{split}: {path}" if len(self.splits) > 1 else path

    def split_names(self) -> list[str]:
        """Return the split of each clip."""
        return [split for split, manifest in self.splits.items() for _ in range(len(manifest))]

    def labels(self) -> list[int]:
        """Return the class of each clip."""
        return [sample.label for manifest in self.splits.values() for sample in manifest.samples]

    def groups(self) -> list[str | None]:
        """Return the group of each clip, or None."""
        return [sample.group for manifest in self.splits.values() for sample in manifest.samples]


def read_clips(config: InspectConfig) -> ClipList:
    """Read the lists of a config.

    Raises:
        ManifestError: A list is invalid.
        InputError: Only one of two sources has labels.
    """
    sources = {"train": config.path} | ({} if config.val is None else {"val": config.val})
    roots = {split: _root(config, source) for split, source in sources.items()}
    unlabeled = [split for split, source in sources.items() if _has_no_labels(source, roots[split])]
    if unlabeled:
        if len(unlabeled) < len(sources):
            raise InputError(f"{unlabeled[0]} is a folder without folders of classes, but the other source has labels")
        folders = {split: Path(_absolute(source, roots[split])) for split, source in sources.items()}
        return ClipList({split: _every_video(config, folder) for split, folder in folders.items()}, False)
    classes: str | tuple[ClassInfo, ...] | None = _classes(config, roots["train"])
    manifests: dict[str, Manifest] = {}
    for split in ("train", "val"):
        if split in sources:
            manifests[split] = load_manifest(
                roots[split],
                _absolute(sources[split], roots[split]),
                classes,
                config.group_pattern,
                allow_outside_root=config.allow_outside_root,
                check_files=False,  # missing files are findings
                split=split if len(sources) > 1 else None,  # type: ignore[arg-type]
            )
            if manifests[split].is_multi_label:
                raise InputError(
                    f"{split} has several labels per video (column labels), which clipvid inspect does not compare; "
                    "give a list with one label per video, or a folder of the videos without folders of classes"
                )
            classes = manifests[split].classes
    return ClipList(manifests, True)


def write_fixed(clips: ClipList, dropped: Collection[int], target: Path) -> str:
    """Write a CSV of all clips but the dropped ones, and return the folder that its paths are relative to.

    Raises:
        InputError: The videos are inside other files, the list is an input, or no video is left.
    """
    check_fixable(clips, target)
    base = os.path.commonpath([os.path.abspath(manifest.root) for manifest in clips.splits.values()])
    kept = [index for index in range(len(clips)) if index not in dropped]
    if not kept:
        raise InputError(f"fix={target}: every video is flagged; choose fewer findings in drop")
    samples = [clips.sample(index) for index in kept]
    columns = ["path"] + ["label"] * clips.is_labeled + ["split"] * (len(clips.splits) > 1)
    optional = [
        name
        for name in ("group", "start", "end", "caption")
        if any(getattr(sample, name) is not None for sample in samples)
    ]
    with replacing(target) as aside, aside.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([*columns, *optional])
        for index, sample in zip(kept, samples, strict=True):
            split, manifest, _ = clips.place(index)
            path = os.path.relpath(os.path.join(os.path.abspath(manifest.root), sample.path), base).replace(os.sep, "/")
            row = {"path": path, "label": clips.class_names[sample.label], "split": split}
            writer.writerow([row[name] for name in columns] + [_cell(sample, name) for name in optional])
    return base


def check_fixable(clips: ClipList, target: Path) -> None:
    """Refuse what `write_fixed` cannot write, before the videos are read.

    Raises:
        InputError: The videos are inside other files, or the target exists and is an input.
    """
    for split, manifest in clips.splits.items():
        if len(manifest) and (manifest.samples[0].media is not None or manifest.samples[0].item is not None):
            raise InputError(f"fix lists files and folders, but the videos of {split} are inside other files")
    if target.exists():
        raise InputError(f"fix={target} exists; give the name of a new file, since no list is ever changed")


def _cell(sample: Sample, name: str) -> str:
    value = getattr(sample, name)
    return "" if value is None else str(value)


def _root(config: InspectConfig, source: Choice) -> Path:
    """Return the folder that the paths of a source are relative to."""
    if config.root is not None:
        return Path(config.root)
    if not isinstance(source, str):
        return Path(".")
    path = Path(source)
    return path if path.is_dir() else path.parent


def _absolute(source: Choice, root: Path) -> Any:
    """Return the absolute path of a source that is a file or folder, so that all start from the same place."""
    if isinstance(source, str):
        for path in (Path(source), root / source):
            if path.exists():
                return str(path.absolute())
    return source


def _classes(config: InspectConfig, root: Path) -> str | None:
    """Return the list of classes, or None if they are the labels."""
    default = DataConfig.classes
    if config.classes is None:
        return default if default is not None and (root / default).is_file() else None
    return str(root / locate(root, config.classes, "list of classes"))


def _has_no_labels(source: Choice, root: Path) -> bool:
    """Return True for a folder that has videos, but no folder below it."""
    if not isinstance(source, str) or source.endswith(".tar"):
        return False
    folder = Path(_absolute(source, root))
    return folder.is_dir() and not any(entry.is_dir() and not entry.name.startswith(".") for entry in folder.iterdir())


def _every_video(config: InspectConfig, folder: Path) -> Manifest:
    rows = checked_rows(EveryVideo(str(folder)), folder, AnyClass(), allow_outside_root=config.allow_outside_root)
    return Manifest(rows, (ClassInfo(0, UNLABELED),), folder)
