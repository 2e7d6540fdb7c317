"""Lists of labelled videos: read, checked at load time, hashed, and split by group."""

import csv
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

_SHOWN_PROBLEMS = 5


class ManifestError(ValueError):
    """A list that cannot be used as it is; the message says where and what to do."""


@dataclass(frozen=True)
class Sample:
    """One labelled video: path relative to the root, with forward slashes; class id; group (person, source)."""

    path: str
    label: int
    group: str | None = None


@dataclass(frozen=True)
class ClassInfo:
    """One class: its id (0..K-1), its name, and the further columns of the class list."""

    id: int
    name: str
    attributes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """Samples in file order, classes in id order, and the folder that the paths start from."""

    samples: tuple[Sample, ...]
    classes: tuple[ClassInfo, ...]
    root: Path

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def class_names(self) -> list[str]:
        return [info.name for info in self.classes]

    @cached_property
    def hash(self) -> str:
        """sha256 of samples and classes. Root, file format, line ends and spelling of labels do not enter."""
        samples = [[sample.path, sample.label, sample.group] for sample in self.samples]
        classes = [[info.id, info.name, sorted(info.attributes.items())] for info in self.classes]
        return hashlib.sha256(json.dumps([samples, classes]).encode()).hexdigest()

    def video_path(self, index: int) -> Path:
        """Where the video of sample `index` lies."""
        return self.root / self.samples[index].path

    def joined(self, other: "Manifest") -> "Manifest":
        """The samples of both, which must share classes and root.

        Raises ManifestError where they do not, or where a video is in both.
        """
        if (self.classes, self.root) != (other.classes, other.root):
            raise ManifestError("two lists with different classes or roots cannot be joined")
        both = {sample.path for sample in self.samples} & {sample.path for sample in other.samples}
        if both:
            raise ManifestError(f"{len(both)} videos are in both lists, such as {sorted(both)[:3]}; drop them from one")
        return replace(self, samples=self.samples + other.samples)

    def subset(self, indices: Sequence[int]) -> "Manifest":
        """The samples at `indices`, in that order, with all classes."""
        return replace(self, samples=tuple(self.samples[index] for index in indices))


def load_manifest(
    root: str | os.PathLike[str],
    file: str | os.PathLike[str],
    classes: str | os.PathLike[str] | None = "classes.csv",
    group_pattern: str | None = None,
    *,
    allow_outside_root: bool = False,
    check_files: bool = True,
) -> Manifest:
    r"""Read a list of labelled videos and check every line of it.

    Args:
        root: folder that the paths in the list start from, and `file` and `classes` unless absolute.
        file: lines `path label`, or CSV whose header has `path`, `label` and perhaps `group`. A label is a class
            id or a class name.
        classes: names, one per line, in id order; or CSV with `id`, `name` and further columns, kept as
            attributes. None: the labels are names, and the classes are those of the list, in sorted order.
        group_pattern: regular expression, searched in each path; its first group is the sample's group, in place
            of the column. Weizmann by person: `[^/]+/([a-z]+)_`.
        allow_outside_root: accept absolute paths and `..` that lead out of `root`.
        check_files: look that every video exists.

    Raises ManifestError, with file and line, for lines, labels, groups or classes that make no sense, videos that
    are missing or listed twice, and paths outside of the root; FileNotFoundError where a list itself is missing.
    """
    root, file = Path(root), Path(root, file)
    pattern = _compiled(group_pattern)
    rows = _read_rows(file)
    infos = _classes_in(rows) if classes is None else _read_classes(Path(root, classes))
    resolver = _Labels(infos)
    samples = []
    for row in rows:
        path, label = resolver.split(row)
        path = _inside(path, root, row, allow_outside_root)
        samples.append(Sample(path, label, _group(path, row, pattern)))
    _check_samples(samples, rows, root, check_files)
    return Manifest(tuple(samples), infos, root)


def leave_one_group_out(manifest: Manifest) -> Iterator[tuple[str, Manifest, Manifest]]:
    """For each group in sorted order: (group, all samples of the others, its own samples).

    Raises ManifestError where a sample has no group, or all have the same.
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


@dataclass(frozen=True)
class _Row:
    """One entry of a list. `label` is None where `text` still holds both path and label."""

    where: str
    text: str
    label: str | None
    group: str | None


class _Labels:
    """Turns the label of a row, an id or a name, into an id."""

    def __init__(self, classes: tuple[ClassInfo, ...]) -> None:
        self._count = len(classes)
        self._ids = {info.name: info.id for info in classes}

    def split(self, row: _Row) -> tuple[str, int]:
        if row.label is not None:
            return row.text, self._id(row.label, row)
        words = [match.start() for match in re.finditer(r"\s+\S", row.text)]
        if not words:
            raise ManifestError(f"{row.where}: {row.text!r} has no label; expected `path label`, or CSV with a header")
        for start in words[:-1]:
            name = row.text[start:].strip()
            if name in self._ids:
                return row.text[:start], self._ids[name]
        return row.text[: words[-1]].rstrip(), self._id(row.text[words[-1] :].strip(), row)

    def _id(self, label: str, row: _Row) -> int:
        if re.fullmatch(r"[+-]?\d+", label):
            if 0 <= int(label) < self._count:
                return int(label)
            problem = f"{label} is outside of the {self._count} classes (0..{self._count - 1})"
        elif label in self._ids:
            return self._ids[label]
        else:
            problem = f"{label!r} is neither a class id nor one of the {self._count} class names"
        raise ManifestError(f"{row.where}: label {problem}; correct it, or give the class list that belongs to it")


def _lines(file: Path, what: str) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise FileNotFoundError(f"no {what} at {file}; its path is taken from the root unless absolute") from None
    except UnicodeDecodeError as error:
        raise ManifestError(f"{file}: {what} is not UTF-8 text ({error.reason}); save it as UTF-8") from None


def _read_table(file: Path, lines: list[str], needed: tuple[str, ...]) -> list[tuple[str, dict[str, str]]]:
    """Rows of a CSV file as (file:line, column -> value)."""
    reader = csv.reader(lines, skipinitialspace=True)
    header = [name.strip() for name in next(reader)]
    if len(set(header)) < len(header):
        raise ManifestError(f"{file}:1: the header {header} names a column twice; rename one")
    table = []
    for values in reader:
        where = f"{file}:{reader.line_num}"
        if not any(value.strip() for value in values):
            continue
        if len(values) != len(header):
            raise ManifestError(f"{where}: {len(values)} values for the {len(header)} columns {header}; quote commas")
        row = {name: value.strip() for name, value in zip(header, values, strict=True)}
        for name in needed:
            if not row[name]:
                raise ManifestError(f"{where}: no {name} given; every row needs {', '.join(needed)}")
        table.append((where, row))
    return table


def _has_columns(line: str, needed: tuple[str, ...]) -> bool:
    return set(needed) <= {name.strip() for name in line.split(",")}


def _read_rows(file: Path) -> list[_Row]:
    lines = _lines(file, "list of videos")
    if lines and _has_columns(lines[0], ("path", "label")):
        table = _read_table(file, lines, ("path", "label"))
        rows = [_Row(where, row["path"], row["label"], row.get("group") or None) for where, row in table]
    else:
        rows = [_Row(f"{file}:{n}", line.strip(), None, None) for n, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise ManifestError(f"{file}: no video is listed; expected lines `path label`, or CSV with path,label")
    return rows


def _classes_in(rows: list[_Row]) -> tuple[ClassInfo, ...]:
    """The classes that the labels name. In lines `path label` a name is the last word."""
    names = set()
    for row in rows:
        name = row.label if row.label is not None else row.text.split()[-1]
        if re.fullmatch(r"[+-]?\d+", name):
            raise ManifestError(f"{row.where}: label {name} is a number and has no name; give a class list (classes=)")
        names.add(name)
    return tuple(ClassInfo(i, name) for i, name in enumerate(sorted(names)))


def _read_classes(file: Path) -> tuple[ClassInfo, ...]:
    lines = _lines(file, "list of classes")
    if lines and _has_columns(lines[0], ("id", "name")):
        infos = []
        for where, row in _read_table(file, lines, ("id", "name")):
            number, name = row.pop("id"), row.pop("name")
            if not number.isdecimal():
                raise ManifestError(f"{where}: class id {number!r} is not a number; ids count from 0")
            infos.append(ClassInfo(int(number), name, row))
    else:
        infos = [ClassInfo(i, name) for i, name in enumerate(line.strip() for line in lines if line.strip())]
    infos.sort(key=lambda info: info.id)
    if not infos or [info.id for info in infos] != list(range(len(infos))):
        raise ManifestError(f"{file}: {len(infos)} class ids {[i.id for i in infos][:20]}; expected 0, 1, 2, ... once")
    twice = sorted(name for name, count in Counter(info.name for info in infos).items() if count > 1)
    if twice:
        raise ManifestError(f"{file}: class names given twice: {twice}; names are prompts, and must differ")
    return tuple(infos)


def _compiled(group_pattern: str | None) -> re.Pattern[str] | None:
    if group_pattern is None:
        return None
    try:
        pattern = re.compile(group_pattern)
    except re.error as error:
        raise ManifestError(f"group_pattern {group_pattern!r} is not a regular expression: {error}") from None
    if pattern.groups < 1:
        raise ManifestError(f"group_pattern {group_pattern!r} has no group; put the part to take in parentheses")
    return pattern


def _group(path: str, row: _Row, pattern: re.Pattern[str] | None) -> str | None:
    if pattern is None:
        return row.group
    match = pattern.search(path)
    if match is None or match.group(1) is None:
        raise ManifestError(f"{row.where}: group_pattern {pattern.pattern!r} finds no group in {path!r}; correct it")
    return match.group(1)


def _inside(path: str, root: Path, row: _Row, allow_outside_root: bool) -> str:
    """The path from the root, normalised. Links are not followed: who makes a link means it."""
    base = os.path.abspath(root)
    relative = os.path.relpath(os.path.join(base, path), base).replace(os.sep, "/")
    if (relative == ".." or relative.startswith("../")) and not allow_outside_root:
        raise ManifestError(
            f"{row.where}: {path!r} lies outside of the root {base}; move it, or set allow_outside_root"
        )
    return relative


def _check_samples(samples: list[Sample], rows: list[_Row], root: Path, check_files: bool) -> None:
    first: dict[str, _Row] = {}
    problems = []
    for sample, row in zip(samples, rows, strict=True):
        if sample.path in first:
            problems.append(f"{row.where}: {sample.path!r} is already listed at {first[sample.path].where}")
        elif check_files and not Path(root, sample.path).is_file():
            problems.append(f"{row.where}: no video at {Path(root, sample.path)}")
        first.setdefault(sample.path, row)
    if problems:
        more = [f"... and {len(problems) - _SHOWN_PROBLEMS} more"] if len(problems) > _SHOWN_PROBLEMS else []
        raise ManifestError("\n".join([*problems[:_SHOWN_PROBLEMS], *more, "Correct the list, or its root."]))
