"""Blocks of CSV that Arrow parses have the rows, line numbers and errors of the careful reader."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipvid.data.lists import delimited
from clipvid.data.lists.delimited import Header, read_columns, read_rows
from clipvid.data.lists.samples import ManifestError
from clipvid.data.lists.tables import read_table

FIELDS = [
    "a.mp4",
    "b",
    "",
    " ",
    " c ",
    "\u3000d\xa0",
    "\x1ce",
    "\ufefff",
    "\0",
    '"g"',
    '"h',
    'i"j',
    '"k\nl"',
    "m\rn",
    "ü",
]
LINES = st.lists(st.sampled_from(FIELDS), min_size=1, max_size=3)
ENDS = st.sampled_from(["\n", "\n", "\n", "\r\n", "\n\n", "\r", " \n", ""])


def outcome(read: Callable[[], list[Any]]) -> list[Any] | str:
    try:
        return read()
    except ManifestError as error:
        return str(error)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    delimiter=st.sampled_from(list(delimited.DELIMITERS)),
    first=st.sampled_from(["path{}label\n", "\ufeffpath{}label\r\n", '"path"{}label\n', "path{}label\r"]),
    lines=st.lists(st.tuples(LINES, ENDS), max_size=8),
    block=st.sampled_from([1, 12, 1 << 20]),
)
def test_blocks_equal_rows(delimiter: str, first: str, lines, block: int, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(delimited, "_BLOCK", block)
    file, header = tmp_path / "list.csv", Header(("path", "label"), ("path", "label"), delimiter)
    text = first.format(delimiter) + "".join(delimiter.join(fields) + end for fields, end in lines)
    file.write_bytes(text.encode())

    def blocks() -> list[Any]:
        return [
            (line, [path, label])
            for lines, columns in read_columns(file, header, "list")
            for line, path, label in zip(*(part.to_pylist() for part in (lines, *columns.values())), strict=True)
        ]

    assert outcome(blocks) == outcome(lambda: list(read_rows(file, header, "list")))


@pytest.mark.parametrize("last", ["b.mp4,1\n", '"b, c.mp4",1\n', "b.mp4,1\r\n", "\nb.mp4,1"])
def test_plain_blocks_are_read_without_the_row_reader(last: str, tmp_path: Path, monkeypatch):
    starts = []

    def counted(*args):
        starts.append(args)
        return read_rows(*args)

    monkeypatch.setattr(delimited, "read_rows", counted)
    (tmp_path / "list.csv").write_bytes(("path,label\n" + "a.mp4,0\n" * 1000 + last).encode())
    batches = list(read_table(tmp_path / "list.csv", ()))
    assert sum(map(len, batches)) == 1001
    assert batches[-1]["line"][-1].as_py() == (1003 if last.startswith("\n") else 1002)
    assert len(starts) == ('"' in last)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"b.mp4\n", "list.csv:1002: 1 values for the 2 columns"),
        (b"b.mp4,0,1\n", "list.csv:1002: 3 values for the 2 columns"),
        (b",0\n", "list.csv:1002: no path given"),
        (b"x" * 100_001 + b",0\n", "list.csv:1002: the line has 100003 characters"),
        (b"x" * 500_000 + b",0\n", "list.csv:1002: the line has 500002 characters"),
        (b"\xff.mp4,0\n", "is not UTF-8 text"),
    ],
)
def test_errors_after_plain_lines_name_their_line(line: bytes, message: str, tmp_path: Path):
    (tmp_path / "list.csv").write_bytes(b"path,label\n" + b"a.mp4,0\n" * 1000 + line + b"c.mp4,0\n" * 10)
    with pytest.raises(ManifestError, match=message):
        list(read_table(tmp_path / "list.csv", ()))
