"""Reader of CSV files: delimiter and header are found, columns are named by synonyms, quotes are checked."""

from __future__ import annotations

import csv
import itertools
import re
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as pa_csv

from clipvid.data.lists.samples import ManifestError
from clipvid.data.lists.text import MAX_LINE, check_line, check_list, clipped, iter_lines
from clipvid.registry import suggest

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_BLOCK = 8 << 20  # bytes
_ROWS = 50_000  # rows of a block that is not plain


@dataclass(frozen=True)
class Header:
    """The columns of a file, and its delimiter.

    Attributes:
        names: Names in the file, without spaces around them.
        columns: Names that clipvid uses for the same columns.
        delimiter: Character between columns.
    """

    names: tuple[str, ...]
    columns: tuple[str, ...]
    delimiter: str

    def __str__(self) -> str:
        return f"{clipped(list(self.names), 300)} (delimiter: {DELIMITERS[self.delimiter]})"


def find_header(line: str, needed: Sequence[str], synonyms: dict[str, str]) -> Header | None:
    """Return the header that a first line is, or None where no delimiter gives the needed columns.

    Args:
        line: the first line of a file.
        needed: names of columns that must be there.
        synonyms: other name -> name, in lower case with underscores.
    """
    for delimiter in DELIMITERS:
        names = split_line(line, delimiter)
        columns = tuple(canonical(name, synonyms) for name in names)
        if set(needed) <= set(columns):
            return Header(tuple(names), columns, delimiter)
    return None


def canonical(name: str, synonyms: dict[str, str]) -> str:
    """Return our name of a column."""
    plain = "_".join(name.strip().lower().replace("-", " ").split())
    return synonyms.get(plain, plain)


def split_line(line: str, delimiter: str) -> list[str]:
    """Return the fields of one line, without spaces around; an empty list where its quotes are wrong."""
    try:
        fields = next(csv.reader([line], delimiter=delimiter, skipinitialspace=delimiter != "\t"), [])
    except csv.Error:
        return []
    return [field.strip() for field in fields]


def check_columns(
    where: str, names: Sequence[str], columns: Sequence[str], allowed: Sequence[str], delimiter: str | None = None
) -> None:
    """Raise ManifestError for unknown columns, and for two columns that mean the same."""
    shown = f" (delimiter: {DELIMITERS[delimiter]})" if delimiter else ""
    seen: dict[str, str] = {}
    for name, column in zip(names, columns, strict=True):
        if column in seen:
            twice = f"the header {clipped(list(names), 300)} names a column twice"
            same = f"{clipped(seen[column])} and {clipped(name)} both give the {column}"
            raise ManifestError(f"{where}: {twice if seen[column] == name else same}; rename or drop one{shown}")
        seen[column] = name
        if allowed and column not in allowed:
            hint = suggest(column, allowed)
            raise ManifestError(
                f"{where}: unknown column {clipped(name)}{hint}; expected {', '.join(allowed)}. "
                f"Drop or rename it{shown}"
            )


def read_columns(file: Path, header: Header, what: str) -> Iterator[tuple[pa.Array, dict[str, pa.Array]]]:
    """Yield blocks of rows after the header: their line numbers, and strings by column. Blank rows are left out.

    Arrow parses plain blocks. The first block that is not plain, such as one with quotes, and all after it are read row
    by row. That also finds the line of an error.

    Raises:
        ManifestError: see `read_rows`.
    """
    line = 1
    with file.open("rb") as handle:
        plain = re.search(rb'["\r]', handle.readline(4 * MAX_LINE).removesuffix(b"\n").removesuffix(b"\r")) is None
        while plain and (block := handle.read(_BLOCK)):
            table = _parse_plain(block + handle.readline(4 * MAX_LINE), header)
            plain = table is not None
            if table is None:
                break
            columns = {name: pc.utf8_trim_whitespace(table[name].combine_chunks()) for name in header.columns}
            filled = reduce(pc.or_, (pc.not_equal(column, "") for column in columns.values()))
            lines = pa.array(np.arange(line + 1, line + 1 + len(table)))
            yield lines.filter(filled), {name: column.filter(filled) for name, column in columns.items()}
            line += len(table)
    if plain:
        return
    others = (row for row in read_rows(file, header, what) if row[0] > line)
    while part := list(itertools.islice(others, _ROWS)):
        numbers, values = zip(*part, strict=True)
        texts = zip(header.columns, zip(*values, strict=True), strict=True)
        yield pa.array(numbers, pa.int64()), {name: pa.array(column, pa.string()) for name, column in texts}


def _parse_plain(block: bytes, header: Header) -> pa.Table | None:
    """Return the lines of a block as a table of strings; None if `csv` could read them in another way."""
    text = block.replace(b"\r\n", b"\n").removesuffix(b"\n") + b"\n"
    ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n"))
    if b'"' in text or b"\r" in text or text.startswith(BOM_UTF8) or np.diff(ends, prepend=-1).max() > MAX_LINE:
        return None
    try:
        table = pa_csv.read_csv(
            pa.BufferReader(text),
            pa_csv.ReadOptions(column_names=header.columns),
            pa_csv.ParseOptions(delimiter=header.delimiter, quote_char=False, ignore_empty_lines=False),
            pa_csv.ConvertOptions(column_types=dict.fromkeys(header.columns, pa.string())),
        )
    except pa.ArrowInvalid:
        return None
    return table if len(table) == len(ends) else None


def read_rows(file: Path, header: Header, what: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, fields) for each row after the header; blank rows are left out.

    Raises:
        ManifestError: with file and line, for another number of fields, quotes that are not closed, or long lines.
    """
    check_list(file, what)
    lines = _Lines(file, what)
    options = {"delimiter": header.delimiter, "skipinitialspace": header.delimiter != "\t"}
    reader, before = csv.reader(lines, **options), 1  # type: ignore[arg-type]
    next(reader, None)
    while True:
        before = lines.number
        lines.since.clear()
        try:
            values = next(reader, None)
            if lines.number > before + 1:  # a value of several lines, or a quote that is never closed
                next(csv.reader(lines.since, strict=True, **options))  # type: ignore[arg-type]
        except csv.Error as error:
            raise ManifestError(f"{file}:{before + 1}: {error}; close the quotes of this line") from None
        if values is None:
            return
        values = [value.strip() for value in values]
        if not any(values):
            continue
        if len(values) != len(header.columns):
            raise ManifestError(
                f"{file}:{lines.number}: {len(values)} values for the {len(header.columns)} columns {header}; "
                "quote fields that contain the delimiter"
            )
        yield lines.number, values


class _Lines:
    """Lines for `csv.reader`; counts them, and keeps those of the current row. A row is bounded as a line is."""

    def __init__(self, file: Path, what: str) -> None:
        self.file, self.lines = file, iter_lines(file, what)
        self.number, self.since = 0, list[str]()

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self.lines)
        self.number += 1
        check_line(self.file, self.number, line)
        if len(self.since) > 1000:
            raise csv.Error("a quoted value of more than 1000 lines")
        self.since.append(f"{line}\n")
        return self.since[-1]
