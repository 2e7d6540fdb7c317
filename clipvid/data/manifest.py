"""Labeled videos of one split: read from any source, checked, hashed, and split by group."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from clipvid.data.lists.checks import Checks, checked, compile_pattern, relative_path
from clipvid.data.lists.checks import check_files as check_listed_files
from clipvid.data.lists.classes import ClassList, read_classes
from clipvid.data.lists.places import locate
from clipvid.data.lists.samples import ClassInfo, ManifestError, Rows, Sample
from clipvid.data.lists.several import LABELS, SEPARATOR
from clipvid.data.lists.sources import DatasetsSource, FolderSource, ListSource, Source, resolve_source
from clipvid.data.lists.tables import LARGE_BYTES, Batches
from clipvid.decoding.errors import VideoError
from clipvid.files import replacing
from clipvid.registry import Choice

__all__ = [
    "ClassInfo",
    "Manifest",
    "ManifestError",
    "Sample",
    "checked_rows",
    "leave_one_group_out",
    "load_manifest",
]

_CACHE_FORMAT = 2


@dataclass(frozen=True)
class Manifest:
    """Samples in the order of their source, classes in id order, and the folder that paths are relative to."""

    samples: Sequence[Sample]
    classes: tuple[ClassInfo, ...]
    root: Path

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in id order."""
        return [info.name for info in self.classes]

    @cached_property
    def is_multi_label(self) -> bool:
        """True if the list gives several labels per video."""
        return len(self) > 0 and self.samples[0].labels is not None

    def label_text(self, sample: Sample) -> str:
        """Return the class name of a sample, or its names with a separator between them."""
        if sample.labels is None:
            return self.classes[sample.label].name
        return SEPARATOR.join(self.classes[label].name for label in sample.labels)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of samples and classes, independent of root, file format, line ends and spelling of labels."""
        digest = hashlib.sha256()
        for info in self.classes:
            digest.update(json.dumps([info.id, info.name, sorted(info.attributes.items())]).encode())
        for s in self.samples:
            several = [] if s.labels is None else [s.labels]
            digest.update(json.dumps([s.path, s.label, s.group, s.start, s.end, s.caption, *several]).encode())
        return digest.hexdigest()

    def video(self, index: int) -> str | bytes | Path:
        """Return the path or the bytes of the video of sample `index`.

        Raises:
            OSError: The video cannot be downloaded.
            VideoError: The system refuses its path.
            ValueError: The path has a null character.
        """
        sample = self.samples[index]
        if sample.media is not None:
            return sample.media()
        path = self.file(sample)
        try:
            path.stat()
        except FileNotFoundError:  # reported by the reader
            pass
        except OSError as error:
            raise VideoError(sample.path, error.strerror or str(error)) from None
        return path

    def file(self, sample: Sample) -> Path:
        """Return the path of a sample that is a file or a folder below the root, or beside it."""
        # The root need not exist where paths lead out of it.
        return (
            Path(os.path.normpath(self.root / sample.path)) if sample.path.startswith("..") else self.root / sample.path
        )

    def joined(self, other: Manifest) -> Manifest:
        """Return the samples of both manifests, which must share classes and root.

        Raises:
            ManifestError: Classes or root differ, or a video is in both.
        """
        if (self.classes, self.root) != (other.classes, other.root):
            raise ManifestError("two lists with different classes or roots cannot be joined")
        check_same_kind(self, other)
        both = sorted({*self.paths()}.intersection(other.paths()))
        if both:
            raise ManifestError(
                f"{len(both)} videos are in both lists, such as {both[:3]}, and would count twice; drop them from one"
            )
        return replace(self, samples=(*self.samples, *other.samples))

    def subset(self, indices: Sequence[int]) -> Manifest:
        """Return the samples at `indices`, in that order, with all classes."""
        return replace(self, samples=tuple(self.samples[index] for index in indices))

    def paths(self) -> Iterator[str]:
        """Yield the paths of the samples in order."""
        if isinstance(self.samples, Rows):
            return (path for chunk in self.samples.table["path"].chunks for path in chunk.to_pylist())
        return (sample.path for sample in self.samples)


def load_manifest(
    root: str | os.PathLike[str],
    source: Choice,
    classes: str | os.PathLike[str] | Sequence[ClassInfo] | None = "classes.csv",
    group_pattern: str | None = None,
    *,
    allow_outside_root: bool = False,
    check_files: bool = True,
    split: Literal["train", "val"] | None = None,
) -> Manifest:
    r"""Read labeled videos from a source and check every line.

    Checked lists of 16 MB and more are stored as an Arrow file in `$CLIPVID_CACHE` (`~/.cache/clipvid`) and
    memory-mapped. The file is reused until the list or the arguments change.

    Args:
        root: Folder that the paths in the list are relative to, and `source` and `classes`
            unless they are absolute or exist only in the working folder.
        source: A file with lines `path label`, or with columns `path`, `label` and optionally `start`, `end` (seconds),
            `caption`, `group`, `split` in CSV, JSON, JSON lines or Parquet; a folder with one folder per class;
            `name-{000..009}.tar` of WebDataset; or `{name: datasets, ...}`. See `clipvid.data.lists.sources`. A label
            is a class id or a class name. A column `labels` (`run;jump`) gives several labels per video.
        classes: A class list, see `classes.read_classes`, or the classes themselves. With None, labels are names, and
            the classes are those of the source in sorted order.
        group_pattern: Regular expression, searched in each path of a list, or below the folder if `source` is one. Its
            first group is the sample's group, instead of the column. Weizmann by person: `[^/]+/([a-z]+)_`.
        allow_outside_root: Accept absolute paths, `..` and links that lead out of `root`.
        check_files: Check that every video exists, and where links lead.
        split: Rows to read from a list with a column `split`: those with `train`, or those with `val`, `validation` or
            `test`. None reads all.

    Raises:
        ManifestError: A line, label, group, class or column is invalid, a video is missing or repeated, or a path is
            outside the root. The message has file and line.
        FileNotFoundError: The list itself is missing.
    """
    root = Path(root)
    listing = resolve_source(source, root)
    if isinstance(listing, ListSource) and listing.split is None:
        listing = replace(listing, split=split)
    pattern = compile_pattern(group_pattern)
    batches: list[pa.RecordBatch] | None = None
    if classes is None:
        batches = list(listing.batches(root, ()))
        class_list = ClassList(_classes_in(batches, listing.title))
    elif isinstance(classes, str | os.PathLike):
        class_list = read_classes(root / locate(root, os.fspath(classes), "list of classes"))
    else:
        class_list = ClassList(classes)
    # Users name a folder by themselves; lists may come from others.
    top = root / listing.folder if isinstance(listing, FolderSource) else root
    is_below = os.path.abspath(top).startswith(os.path.join(os.path.abspath(root), ""))
    allowed = allow_outside_root or (isinstance(listing, FolderSource) and not is_below)
    rows = checked_rows(listing, root, class_list, pattern, allow_outside_root=allowed, batches=batches)
    if check_files:
        check_listed_files(rows, listing.title, root, None if allow_outside_root else root if is_below else top)
    return Manifest(rows, class_list.classes, root)


def checked_rows(
    source: Source,
    root: Path,
    classes: ClassList,
    pattern: re.Pattern[str] | None = None,
    *,
    allow_outside_root: bool = False,
    batches: Iterable[pa.RecordBatch] | None = None,
) -> Rows:
    """Return the checked rows of a source, without a check of files. Large lists come from the cache.

    Args:
        source: what lists the videos.
        root: folder that paths start from.
        classes: meaning of the labels.
        pattern: expression that finds the group of a path.
        allow_outside_root: accept paths that lead out of `root`.
        batches: what `source` lists, if it has been read already.
    """
    split = source.split if isinstance(source, ListSource) else None
    # The names of folders above the classes say nothing about groups.
    folder = relative_path(str(root / source.folder), str(root)) + "/" if isinstance(source, FolderSource) else ""
    checks = Checks(root, source.title, classes, pattern, allow_outside_root, split, folder)
    columns = checked(source.batches(root, classes.ids) if batches is None else iter(batches), checks)
    file = root / source.file if isinstance(source, ListSource) else None
    if file is None or not file.is_file() or file.stat().st_size < LARGE_BYTES:
        media = source.media(root) if isinstance(source, DatasetsSource) else None
        return Rows(pa.Table.from_batches(list(columns)), media=media)
    cached = _cache_file(file, checks)
    if not cached.is_file():
        _write_cache(cached, columns)
    return Rows.mapped(cached)


def _cache_file(file: Path, checks: Checks) -> Path:
    """Return the cache path of a checked list. It depends on everything that affects the rows."""
    stat, classes = file.stat(), checks.classes
    key = [
        *(_CACHE_FORMAT, str(file.absolute()), stat.st_size, stat.st_mtime_ns),
        *(str(checks.root.absolute()), checks.allow_outside_root, checks.pattern and checks.pattern.pattern),
        *(checks.split, classes.first, [info.name for info in classes.classes]),
    ]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    cache = Path(os.environ.get("CLIPVID_CACHE", Path.home() / ".cache" / "clipvid"))
    return cache / "manifests" / f"{digest}.arrow"


def _write_cache(file: Path, batches: Batches) -> None:
    """Write batches to an Arrow file, whole or not at all."""
    with contextlib.ExitStack() as stack:
        try:
            aside = stack.enter_context(replacing(file))
        except OSError as error:
            raise ManifestError(
                f"cannot write the list to the cache ({error}); set CLIPVID_CACHE to another folder"
            ) from None
        first = next(batches)
        with pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, first.schema) as writer:
            for batch in itertools.chain([first], batches):
                writer.write_batch(batch)


def check_same_kind(train: Manifest, val: Manifest) -> None:
    """Raise ManifestError if one of two lists has several labels per video, and the other one has one."""
    if train.is_multi_label != val.is_multi_label:
        several, one = ("data.train", "data.val") if train.is_multi_label else ("data.val", "data.train")
        raise ManifestError(
            f"{several} has several labels per video (column labels), but {one} has one (column label); use the column "
            "labels in both"
        )


def leave_one_group_out(manifest: Manifest) -> Iterator[tuple[str, Manifest, Manifest]]:
    """Yield (group, samples of the other groups, samples of the group) for each group in sorted order.

    Raises:
        ManifestError: A sample has no group, or all have the same.
    """
    groups = [sample.group for sample in manifest.samples]
    named = sorted({group for group in groups if group is not None})
    if None in groups or len(named) < 2:
        problem = f"{groups.count(None)} samples have no group" if None in groups else f"the groups are {named}"
        raise ManifestError(
            f"leaving one group out needs a group for every sample and at least two groups; {problem}. "
            "Give load_manifest a group_pattern, or the list a `group` column"
        )
    for name in named:
        train, test = ([i for i, group in enumerate(groups) if (group == name) is held] for held in (False, True))
        yield name, manifest.subset(train), manifest.subset(test)


def _classes_in(batches: Iterable[pa.RecordBatch], title: str) -> tuple[ClassInfo, ...]:
    """Return the classes named by the labels.

    Raises:
        ManifestError: a label is a number.
    """
    names: set[str] = set()
    for rows in batches:
        is_several = LABELS in rows.schema.names
        labels = rows[LABELS].flatten() if is_several else rows["label"]
        for name in pc.unique(labels).to_pylist():
            if re.fullmatch(r"[+-]?\d+", name):
                place = pc.index(labels, name).as_py()
                line = rows["line"][pc.list_parent_indices(rows[LABELS])[place].as_py() if is_several else place]
                raise ManifestError(
                    f"{title}:{line}: label {name} is a number and has no name; give a class list "
                    "(data.classes; classes= in Python)"
                )
            names.add(name)
    return tuple(ClassInfo(i, name) for i, name in enumerate(sorted(names)))
