"""Lists of videos in files: lines `path label`, CSV, JSON, JSON lines and Parquet, as batches of Arrow columns.

A batch has `path`, `line` (or row), and `label` (as written, a string) or `labels` (a list of strings). Of `group`,
`caption`, `start` and `end` it has those that the file has.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipvid.data.lists.classes import is_several
from clipvid.data.lists.delimited import Header, canonical, check_columns, find_header, read_columns, read_rows
from clipvid.data.lists.samples import ManifestError
from clipvid.data.lists.several import ADVICE, LABELS, json_labels, label_texts
from clipvid.data.lists.text import MAX_LINE, check_list, clipped, parse_json, read_lines
from clipvid.decoding.files import VIDEO_SUFFIXES
from clipvid.files import one_line, replacing, write_text

TEXT_COLUMNS = ("path", "label", "group", "caption", "split")
NUMBER_COLUMNS = ("start", "end")
COLUMNS = (*TEXT_COLUMNS, LABELS, *NUMBER_COLUMNS)
# Values of a `split` column, in lower case, and the split of a config that takes their rows.
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "test", "testing"), "val"),
}
# Files from this size on are kept in the cache once they are checked.
LARGE_BYTES = 16 << 20
WHAT = "list of videos"
_NEEDED = ("path", "label")
_NEEDED_OF_SEVERAL = ("path", LABELS)
_SYNONYMS = {
    **dict.fromkeys(("video", "video_name", "video_path", "file", "filename", "file_name", "filepath"), "path"),
    **dict.fromkeys(("class", "class_name", "classname", "category", "label_name", "target"), "label"),
    "subset": "split",
}
_FRAME_LIST = re.compile(r"(\S+)\s+\d+\s+(\d+)")
_VIDEO_PATH = re.compile(rf".*(?:{'|'.join(map(re.escape, sorted(VIDEO_SUFFIXES)))})(?=\s)", re.IGNORECASE)

Batches = Iterator[pa.RecordBatch]


def read_table(file: Path, names: Collection[str], split: str | None = None) -> Batches:
    """Yield the batches of a list; its kind follows from the suffix and the first line.

    Args:
        file: the list.
        names: the names of classes, which may have several words, at the end of lines `path label`. If empty, a name
            is all text after the name of a video file, otherwise the last word.
        split: `train` or `val`: rows to keep if the list has a column `split`; None for all rows.

    Raises:
        ManifestError: with file and line, if the list is of no such kind.
        FileNotFoundError: the file does not exist.
    """
    check_list(file, WHAT)
    if file.suffix in _READERS:
        batches = _READERS[file.suffix](file)
    elif (header := _header(file)) is not None:
        batches = _read_csv(file, header)
    else:
        batches = _read_list(file, names)
    empty, values = True, set[str]()
    for batch in batches:
        if "split" in batch.schema.names:
            values |= set(pc.unique(batch["split"]).to_pylist())
            batch = _of_split(batch, split, file)
        empty = empty and not len(batch)
        yield batch
    if empty and values:
        raise ManifestError(f"{file}: its column `split` has {sorted(values)}, so that no row is for data.{split}")
    if empty:
        raise ManifestError(f"{file}: no video is listed; expected lines `path label`, or CSV with path,label")


def _of_split(batch: pa.RecordBatch, split: str | None, file: Path) -> pa.RecordBatch:
    """Return the rows of a split, without the column.

    Raises:
        ManifestError: with file and line, for a value that names no split.
    """
    values = []
    for value in pc.unique(batch["split"]).to_pylist():
        name = None if value is None else SPLITS.get(value.strip().lower())
        if name is None:
            line = batch["line"][batch["split"].to_pylist().index(value)]
            raise ManifestError(
                f"{file}:{line}: split {clipped(value or '')}; expected train, or val, validation or test. Correct it, "
                "or drop the column"
            )
        if split in (None, name):
            values.append(value)
    rows = batch.filter(pc.is_in(batch["split"], pa.array(values, pa.string())))
    return rows.select([name for name in rows.schema.names if name != "split"])


def write_without(file: Path, dropped: Collection[int], target: Path) -> None:
    """Write the list `file` to `target` without the entries whose `line` is in `dropped`, in its own format."""
    if file.suffix == ".parquet":
        table = pq.read_table(file)
        kept_rows = pa.array([n not in dropped for n in range(1, len(table) + 1)])
        with replacing(target) as aside:
            pq.write_table(table.filter(kept_rows), aside)
        return
    lines = read_lines(file, "list of videos")
    if file.suffix == ".json":
        content = [row for n, row in enumerate(parse_json(file, "\n".join(lines)), 1) if n not in dropped]
        write_text(target, json.dumps(content, indent=1))
    elif (header := _header(file)) is not None:
        rows = [(1, list(header.names)), *read_rows(file, header, WHAT)]
        with replacing(target) as aside, aside.open("w", encoding="utf-8", newline="") as out:
            csv.writer(out, delimiter=header.delimiter, lineterminator="\n").writerows(
                row for line, row in rows if line not in dropped
            )
    else:
        kept = [line for n, line in enumerate(lines, 1) if n not in dropped]
        write_text(target, "".join(f"{line}\n" for line in kept))


def _header(file: Path) -> Header | None:
    line = _first_line(file)
    headers = (find_header(line, needed, _SYNONYMS) for needed in (_NEEDED, _NEEDED_OF_SEVERAL))
    return next((header for header in headers if header is not None), None)


def _first_line(file: Path) -> str:
    with file.open(encoding="utf-8-sig", errors="replace") as handle:
        return handle.readline(MAX_LINE).rstrip("\n")


def _read_list(file: Path, names: Collection[str]) -> Batches:
    """Yield lines `path label`, `path frames label`, or `path` alone in a folder named as its class.

    Only folders of frames have a number of frames. After the name of a video file, two numbers are two labels.
    """
    lines = [(n, line.strip()) for n, line in enumerate(read_lines(file, "list of videos"), 1) if line.strip()]
    framed = [_FRAME_LIST.fullmatch(line) for _, line in lines]
    if lines and all(framed) and not any(_VIDEO_PATH.match(line) for _, line in lines):
        rows = [(match[1], match[2]) for match in framed if match]
    else:
        rows = [_split(line, names, f"{file}:{n}") for n, line in lines]
    yield _batch([{"path": path, "label": label} for path, label in rows], [n for n, _ in lines])


def _split(text: str, names: Collection[str], where: str) -> tuple[str, str]:
    """Return path and label of a line.

    Raises:
        ManifestError: the line has no label, or several.
    """
    video = _VIDEO_PATH.match(text)
    if video is not None:
        label = text[video.end() :].strip()
        if label not in names and is_several(label, names):
            raise ManifestError(f"{where}: {clipped(label)} after {clipped(video[0])} is several labels; {ADVICE}")
        return video[0], label
    words = [match.start() for match in re.finditer(r"\s+\S", text)]
    for start in words[:-1]:
        if text[start:].strip() in names:
            return text[:start], text[start:].strip()
    folder = text.rpartition("/")[0].rpartition("/")[2]
    if folder in names and not re.search(r",\d+$", text) and (not words or "/" in text[words[-1] :]):
        return text, folder
    if not words:
        raise ManifestError(f"{where}: {clipped(text)} has no label; expected `path label`, or CSV with a header")
    return text[: words[-1]].rstrip(), text[words[-1] :].strip()


def _read_csv(file: Path, header: Header) -> Batches:
    check_columns(f"{file}:1", header.names, header.columns, COLUMNS, header.delimiter)
    for lines, columns in read_columns(file, header, WHAT):
        yield _typed({name: columns[name] for name in COLUMNS if name in columns}, lines, str(file))


def _read_json(file: Path) -> Batches:
    text = "\n".join(read_lines(file, "list of videos"))
    if file.suffix == ".jsonl":
        numbered = [(n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
        lines = [n for n, _ in numbered]
        content = [parse_json(file, line, n) for n, line in numbered]
    else:
        content = parse_json(file, text)
        lines = list(range(1, len(content) + 1))
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise ManifestError(f"{file}: expected a list of objects with path and label")
    yield _batch(list(_renamed(content, lines, file)), lines, str(file))


def _renamed(rows: list[dict[str, Any]], lines: list[int], file: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON list with our names of the columns; refuse unknown columns."""
    layouts: dict[tuple[str, ...], list[str]] = {}
    for row, line in zip(rows, lines, strict=True):
        names = tuple(row)
        if names not in layouts:
            layouts[names] = [canonical(name, _SYNONYMS) for name in names]
            check_columns(f"{file}:{line}", names, layouts[names], COLUMNS)
        yield dict(zip(layouts[names], row.values(), strict=True))


def _read_parquet(file: Path) -> Batches:
    try:
        source = pq.ParquetFile(file)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{file}: not a Parquet file ({one_line(error)}); write it again") from None
    present = source.schema_arrow.names
    columns_of = [canonical(name, _SYNONYMS) for name in present]
    check_columns(str(file), present, columns_of, COLUMNS)
    if not any(set(needed) <= set(columns_of) for needed in (_NEEDED, _NEEDED_OF_SEVERAL)):
        raise ManifestError(
            f"{file}: its columns are {present}; expected path and label, or path and labels, among them"
        )
    line = 1
    for batch in _parquet_batches(source, file):
        columns = {ours: _as_text(batch[name], file, ours) for ours, name in zip(columns_of, present, strict=True)}
        yield _typed(columns, pa.array(np.arange(line, line + len(batch))), str(file))
        line += len(batch)


def _parquet_batches(source: pq.ParquetFile, file: Path) -> Batches:
    """Yield the batches of a Parquet file. Raise ManifestError where its data are damaged."""
    try:
        yield from source.iter_batches()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{file}: its data are damaged ({one_line(error)}); write it again") from None


_READERS: dict[str, Callable[[Path], Batches]] = {
    ".json": _read_json,
    ".jsonl": _read_json,
    ".parquet": _read_parquet,
}


def _batch(rows: list[dict[str, Any]], lines: list[int], file: str = "") -> pa.RecordBatch:
    """Rows of a file as columns; numbers may be numbers or text."""
    names = [name for name in COLUMNS if any(name in row for row in rows)]
    names += [name for name in _NEEDED if name not in names and LABELS not in names]
    columns = {
        name: pa.array([None if row.get(name) is None else str(row[name]) for row in rows], pa.string())
        for name in names
        if name != LABELS
    }
    if LABELS in names:
        texts = [json_labels(row.get(LABELS), f"{file}:{line}") for row, line in zip(rows, lines, strict=True)]
        columns[LABELS] = pa.array(texts, pa.list_(pa.string()))
    return _typed(columns, pa.array(lines, pa.int64()), file)


def _as_text(column: pa.Array, file: Path, name: str) -> pa.Array:
    if name == LABELS and not pa.types.is_dictionary(column.type):
        return label_texts(column if pa.types.is_nested(column.type) else pc.cast(column, pa.string()), str(file))
    try:
        decoded = column.dictionary_decode() if isinstance(column, pa.DictionaryArray) else column
        text = pc.cast(decoded, pa.string())
        text.validate(full=True)  # a file may call any bytes text
        return text
    except pa.ArrowException as error:
        raise ManifestError(
            f"{file}: a column is neither text nor numbers ({one_line(error)}); write it again"
        ) from None


def _typed(columns: dict[str, pa.Array], lines: pa.Array, file: str) -> pa.RecordBatch:
    """Return the batch of text columns. Times become numbers; empty fields become null, except path and label.

    Raises:
        ManifestError: A value is missing, or the file has a column for one label and one for several.
    """
    if {"label", LABELS} <= columns.keys():
        raise ManifestError(f"{file}: it has the columns label and labels; keep one of them")
    typed = {}
    for name, column in columns.items():
        if name == LABELS:
            typed[name] = column if pa.types.is_list(column.type) else label_texts(column, file)
            continue
        if name in _NEEDED:
            bad = pc.fill_null(pc.equal(column, ""), True)
            if pc.any(bad).as_py():
                where = f"{file}:{lines[pc.index(bad, True).as_py()]}"
                raise ManifestError(f"{where}: no {name} given; every row needs {', '.join(_NEEDED)}")
            typed[name] = column
            continue
        column = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)
        if name in NUMBER_COLUMNS:
            try:
                column = pc.cast(column, pa.float64())
            except pa.ArrowException as error:
                raise ManifestError(
                    f"{file}: column {name!r} is in seconds, a number or empty ({one_line(error)})"
                ) from None
        typed[name] = column
    return pa.record_batch({**typed, "line": lines})
