"""Conversion of the columns of a source to columns of samples, with checks that report the line."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipvid.data.lists.classes import ClassList
from clipvid.data.lists.samples import COLUMNS, ManifestError, Rows
from clipvid.data.lists.several import LABELS, check_names, label_ids
from clipvid.data.lists.tables import Batches

_SHOWN_PROBLEMS = 5


@dataclass(frozen=True)
class Checks:
    """Conversion of the columns of one source, with checks.

    `pattern` is searched in the part of a path after `folder`.
    """

    root: Path
    title: str
    classes: ClassList
    pattern: re.Pattern[str] | None
    allow_outside_root: bool
    split: str | None = None
    folder: str = ""

    def batch(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Convert a batch to those of `COLUMNS` that its source has."""
        columns = {name: rows[name] for name in rows.schema.names if name in COLUMNS.names}
        columns["path"] = self._inside(rows)
        if LABELS in rows.schema.names:
            check_names(list(self.classes.ids), self.title)
            columns[LABELS] = label_ids(rows[LABELS], partial(self._several, rows), len(self.classes.ids))
        else:
            columns["label"] = self._labels(rows["label"], lambda place: rows["line"][place])
        if self.pattern is not None:
            paths = zip(columns["path"].to_pylist(), rows["line"].to_pylist(), strict=True)
            columns["group"] = [
                _group(path.removeprefix(self.folder), self.where(line), self.pattern) for path, line in paths
            ]
        arrays = {
            name: pa.array(column, COLUMNS.field(name).type) if isinstance(column, list) else column
            for name, column in columns.items()
        }
        if {"start", "end"} & arrays.keys():
            self._check_times(arrays, rows["line"])
        schema = pa.schema([field for field in COLUMNS if field.name in arrays])
        return pa.record_batch(arrays).select(schema.names).cast(schema)

    def where(self, line: int) -> str:
        """Return the position of a line for messages."""
        return f"{self.title}:{line}"

    def _several(self, rows: pa.RecordBatch, labels: pa.Array) -> pa.Array:
        return self._labels(labels, lambda place: rows["line"][pc.list_parent_indices(rows[LABELS])[place].as_py()])

    def _labels(self, labels: pa.Array, line_of: Callable[[int], Any]) -> pa.Array:
        """Return the ids of labels. `line_of` returns the line of the label at a place."""
        encoded = pc.dictionary_encode(labels)
        ids = []
        for label in encoded.dictionary.to_pylist():
            try:
                ids.append(self.classes.id_of(label))
            except ManifestError as error:
                line = line_of(pc.index(labels, label).as_py())
                raise ManifestError(f"{self.where(line)}: {error}") from None
        return pa.array(ids, pa.int32()).take(encoded.indices)

    def _inside(self, rows: pa.RecordBatch) -> pa.Array:
        """Return the normalized paths from the root. Links are followed by `check_files`."""
        paths = rows["path"]
        if "file" in rows.schema.names:  # an internal name, not a path
            return paths
        odd = pc.or_(pc.or_(pc.starts_with(paths, "/"), pc.starts_with(paths, ".")), pc.match_substring(paths, "./"))
        odd = pc.or_(pc.or_(odd, pc.match_substring(paths, "//")), pc.or_(pc.ends_with(paths, "/"), os.sep != "/"))
        odd = pc.or_(odd, pc.ends_with(paths, "."))
        if not pc.any(odd).as_py():
            return paths
        base, normal = os.path.abspath(self.root), paths.to_pylist()
        for i in np.flatnonzero(odd.to_numpy(zero_copy_only=False)):
            relative = relative_path(os.path.join(base, normal[i]), base)
            outside = relative == ".." or relative.startswith("../") or os.path.isabs(relative)
            if outside and not self.allow_outside_root:
                raise ManifestError(
                    f"{self.where(rows['line'][i])}: {normal[i]!r} is outside of the root {base}; move it, or set "
                    "allow_outside_root"
                )
            normal[i] = relative
        return pa.array(normal, pa.string())

    def _check_times(self, arrays: dict[str, pa.Array], lines: pa.Array) -> None:
        nothing = pa.nulls(len(lines), pa.float64())
        start = pc.fill_null(arrays.get("start", nothing), 0.0)
        end = pc.fill_null(arrays.get("end", nothing), float("inf"))
        right = pc.and_(pc.greater_equal(start, 0.0), pc.less(start, end))
        place = pc.index(right, False).as_py()
        if place >= 0:
            raise ManifestError(
                f"{self.where(lines[place])}: start {start[place]} and end {end[place]} in seconds; expected "
                "0 <= start < end"
            )


def relative_path(path: str, base: str) -> str:
    """Return the path from `base`, with slashes; the path itself on another drive of Windows."""
    try:
        return os.path.relpath(path, base).replace(os.sep, "/")
    except ValueError:
        return os.path.abspath(path).replace(os.sep, "/")


def checked(batches: Batches, checks: Checks) -> Batches:
    """Yield batches of `COLUMNS`. After the last one, refuse videos that are listed twice."""
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    for rows in batches:
        batch = checks.batch(rows)
        parts.append((_identities(batch), batch["line"].to_numpy()))
        yield batch
    identities, lines = (np.concatenate(part) for part in zip(*parts, strict=True))
    ordered = np.sort(identities)
    if (ordered[1:] != ordered[:-1]).all():
        return
    order = np.argsort(identities, kind="stable")
    same = np.flatnonzero(identities[order][1:] == identities[order][:-1])
    repeats = sorted((lines[order[i + 1]], lines[order[i]]) for i in same)
    listed = [f"{checks.where(line)}: already listed at {checks.where(first)}" for line, first in repeats]
    _refuse(listed, "Drop the repeated lines, or give the labels of a video in one column `labels`.")


def _identities(batch: pa.RecordBatch) -> np.ndarray:
    """Return a 64-bit hash of each video and its part, valid in this process."""
    paths = batch["path"].to_numpy(zero_copy_only=False)
    times = [batch[name] for name in ("start", "end") if name in batch.schema.names]
    keys = zip(paths, *(pc.fill_null(column, -1.0).to_pylist() for column in times), strict=True) if times else paths
    return np.fromiter(map(hash, keys), np.int64, len(batch))


def check_files(rows: Rows, title: str, root: Path, inside: Path | None) -> None:
    """Refuse missing videos, and links that lead out of `inside`.

    Paths that the system refuses (too long, link loops, no permission) are reported when the video is read.

    Args:
        rows: The list.
        title: Name of the list in messages.
        root: Folder that paths are relative to.
        inside: Folder that must contain the files after resolving all links, or None for any.

    Raises:
        ManifestError: A file is missing or outside. The message has the lines.
    """
    if rows.media is not None:
        return
    table = rows.table
    if "file" in table.column_names:
        table = table.filter(pc.is_null(table["file"]))
    problems, missing, folders = list[str](), list[str](), dict[str, str]()
    top = None if inside is None else os.path.join(os.path.realpath(inside), "")
    for batch in table.select(["path", "line"]).to_batches():
        for path, line in zip(batch["path"].to_pylist(), batch["line"].to_pylist(), strict=True):
            file = os.path.join(root, path)
            if path.startswith(".."):
                file = os.path.normpath(file)
            try:
                os.stat(file)
            except (FileNotFoundError, NotADirectoryError):
                problems.append(f"{title}:{line}: no video at {file}")
                missing.append(path)
                continue
            except (OSError, ValueError):
                continue
            real = _real_path(file, folders)
            if top is not None and not real.startswith(top):
                problems.append(f"{title}:{line}: {file} is a link out of {inside}, to {real}; set allow_outside_root")
    if problems:
        advice = "Correct the list, or its root; clipvid check-videos --fix writes a list without them."
        for folder in (root / title).parent, Path.cwd():
            if missing and (folder / missing[0]).exists():
                advice = f"Set data.root={folder}: {missing[0]} is there. Or correct the list."
        _refuse(problems, advice)


def _real_path(file: str, folders: dict[str, str]) -> str:
    """Return the path without links. `folders` caches resolved folders."""
    if os.path.islink(file):
        return os.path.realpath(file)
    folder, name = os.path.split(file)
    if folder not in folders:
        folders[folder] = os.path.realpath(folder)
    return os.path.join(folders[folder], name)


def _refuse(problems: list[str], advice: str) -> None:
    more = [f"... and {len(problems) - _SHOWN_PROBLEMS} more"] if len(problems) > _SHOWN_PROBLEMS else []
    raise ManifestError("\n".join([*problems[:_SHOWN_PROBLEMS], *more, advice]))


def compile_pattern(group_pattern: str | None) -> re.Pattern[str] | None:
    """Compile the regular expression. Raise ManifestError if it is invalid or has no group."""
    if group_pattern is None:
        return None
    try:
        pattern = re.compile(group_pattern)
    except re.error as error:
        raise ManifestError(f"group_pattern {group_pattern!r} is not a regular expression: {error}") from None
    if pattern.groups < 1:
        raise ManifestError(f"group_pattern {group_pattern!r} has no group; put the part to take in parentheses")
    return pattern


def _group(path: str, where: str, pattern: re.Pattern[str]) -> str:
    match = pattern.search(path)
    if match is None or match.group(1) is None:
        raise ManifestError(f"{where}: group_pattern {pattern.pattern!r} finds no group in {path!r}; correct it")
    return match.group(1)
