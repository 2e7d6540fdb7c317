"""Class lists as data sets and papers publish them, and what a label in a list means by them."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from clipvid import InputError
from clipvid.data.lists.samples import ClassInfo, ManifestError
from clipvid.registry import suggest

_NUMBERED = re.compile(r"c?(\d+)\s+(\S.*)")
# Words that a mirror exchanges. The first spelling of the right side that names a class is taken.
_MIRRORED = {
    "left": ("right",),
    "right": ("left",),
    "leftward": ("rightward",),
    "rightward": ("leftward",),
    "leftwards": ("rightwards",),
    "rightwards": ("leftwards",),
    "clockwise": ("anticlockwise", "counterclockwise", "counter-clockwise", "anti-clockwise"),
    "anticlockwise": ("clockwise",),
    "counterclockwise": ("clockwise",),
    "counter-clockwise": ("clockwise",),
    "anti-clockwise": ("clockwise",),
}
_MIRRORED_WORD = re.compile(rf"(?<![a-z])({'|'.join(sorted(_MIRRORED, key=len, reverse=True))})(?![a-z])")


class ClassList:
    """Classes in id order, and the meaning of a label: a name, or a number as the list of classes counts.

    Args:
        classes: ids 0, 1, 2, ...
        first: the number that the list itself gives to class 0 (UCF101's counts from 1).
    """

    def __init__(self, classes: Sequence[ClassInfo], first: int = 0) -> None:
        self.classes, self.first = tuple(classes), first
        self.ids = {info.name: info.id for info in classes}

    def id_of(self, label: str) -> int:
        """The id of a label; ManifestError for one that no class has."""
        last = self.first + len(self.classes) - 1
        if label in self.ids:
            return self.ids[label]
        if re.fullmatch(r"[+-]?\d+", label):
            if self.first <= int(label) <= last:
                return int(label) - self.first
            problem = f"{label} is outside of the {len(self.classes)} classes ({self.first}..{last})"
        else:
            hint = suggest(label, self.ids)
            problem = f"{label!r} is neither a class id nor one of the {len(self.classes)} class names{hint}"
        raise ManifestError(f"label {problem}; correct it, or give the class list that belongs to it")


def read_classes(file: Path) -> ClassList:
    """Read a class list.

    One name per line in id order; CSV with `id`, `name` and further columns, which are kept as attributes; lines
    `1 name` (UCF101) or `c000 name` (Charades) that count up from 0 or 1; JSON with a list of names (or of the parts
    of names, as Diving48's), or with name -> id (Something-Something).

    Raises ManifestError, with file and line, where ids or names make no sense; FileNotFoundError.
    """
    lines = read_lines(file, "list of classes")
    numbered = [_NUMBERED.fullmatch(line.strip()) for line in lines if line.strip()]
    first = int(numbered[0][1]) if numbered and numbered[0] else 0
    if file.suffix == ".json":
        infos = _from_json(file, "\n".join(lines))
    elif lines and has_columns(lines[0], ("id", "name")):
        infos = _from_csv(file, lines)
    elif numbered and first <= 1 and all(match and int(match[1]) == i for i, match in enumerate(numbered, first)):
        infos = [ClassInfo(i, match[2]) for i, match in enumerate(numbered) if match]
        return ClassList(_checked(file, infos), first)
    else:
        infos = [ClassInfo(i, name) for i, name in enumerate(line.strip() for line in lines if line.strip())]
    return ClassList(_checked(file, infos))


def mirror_map(names: Sequence[str], exchanged: dict[str, str] | None = None) -> list[int | None]:
    """For each class, the class that its mirrored clips show; None where there is none, and no flip is right.

    A class whose name has `left`, `right`, `clockwise` ... belongs with the class whose name has the opposite words
    ("Pulling something from left to right" with "... from right to left"); any other is its own.

    Args:
        names: class names in id order.
        exchanged: name -> name, both ways, in place of what the names say.

    Raises ValueError for names in `exchanged` that no class has.
    """
    if exchanged is not None:
        ids = {name.lower(): i for i, name in enumerate(names)}
        unknown = sorted(name for name in {*exchanged, *exchanged.values()} if name.lower() not in ids)
        if unknown:
            raise InputError(f"label_map_flip names {unknown[:5]}, which no class has{suggest(unknown[0], names)}")
        pairs = {ids[a.lower()]: ids[b.lower()] for a, b in exchanged.items()}
        pairs |= {b: a for a, b in pairs.items()}
        return [pairs.get(i, i) for i in range(len(names))]
    plain = [re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).lower() for name in names]  # SwipeLeft: swipe left
    ids = {name: i for i, name in enumerate(plain)}
    return [next((ids[other] for other in _mirrored(name) if other in ids), None) for name in plain]


def _mirrored(name: str) -> list[str]:
    """Spellings of the mirrored name."""
    spellings = range(max(len(words) for words in _MIRRORED.values()))
    return [
        _MIRRORED_WORD.sub(lambda match, k=i: (_MIRRORED[match[0]] * len(spellings))[k], name)  # type: ignore[misc]
        for i in spellings
    ]


def read_lines(file: Path, what: str) -> list[str]:
    """Lines of a text file; ManifestError where it is not UTF-8."""
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise FileNotFoundError(f"no {what} at {file}; its path is taken from the root unless absolute") from None
    except UnicodeDecodeError as error:
        raise ManifestError(f"{file}: {what} is not UTF-8 text ({error.reason}); save it as UTF-8") from None


def read_csv(file: Path, lines: list[str], needed: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """Rows of a CSV file as (line, column -> value)."""
    rows = _csv_rows(file, lines)
    header = [name.strip() for name in next(rows)[1]]
    if len(set(header)) < len(header):
        raise ManifestError(f"{file}:1: the header {header} names a column twice; rename one")
    table = []
    for number, values in rows:
        where = f"{file}:{number}"
        if not any(value.strip() for value in values):
            continue
        if len(values) != len(header):
            raise ManifestError(f"{where}: {len(values)} values for the {len(header)} columns {header}; quote commas")
        row = {name: value.strip() for name, value in zip(header, values, strict=True)}
        for name in needed:
            if not row[name]:
                raise ManifestError(f"{where}: no {name} given; every row needs {', '.join(needed)}")
        table.append((number, row))
    return table


def _csv_rows(file: Path, lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    reader, before = csv.reader((f"{line}\n" for line in lines), skipinitialspace=True), 0
    try:
        for values in reader:
            if reader.line_num > before + 1:  # a value of several lines, or a quote that nobody has closed
                next(csv.reader((f"{line}\n" for line in lines[before:]), skipinitialspace=True, strict=True))
            before = reader.line_num
            yield before, values
    except csv.Error as error:
        raise ManifestError(f"{file}:{before + 1}: {error}; close the quotes of this line") from None


def has_columns(line: str, needed: tuple[str, ...]) -> bool:
    """Whether a line is a CSV header with these columns."""
    return set(needed) <= set(csv_header(line))


def csv_header(line: str) -> list[str]:
    """Names of the columns that a first line gives."""
    return [name.strip() for name in next(csv.reader([line], skipinitialspace=True), [])]


def parse_json(file: Path, text: str) -> Any:
    """The content of a JSON file; ManifestError where it is none."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ManifestError(f"{file}:{error.lineno}: not JSON ({error.msg}); correct it") from None


def _from_csv(file: Path, lines: list[str]) -> list[ClassInfo]:
    infos = []
    for line, row in read_csv(file, lines, ("id", "name")):
        number, name = row.pop("id"), row.pop("name")
        if not number.isdecimal():
            raise ManifestError(f"{file}:{line}: class id {number!r} is not a number; ids count from 0")
        infos.append(ClassInfo(int(number), name, row))
    for info in infos:
        partner = info.attributes.get("partner", "-1")
        if partner != "-1" and not (partner.isdecimal() and int(partner) < len(infos)):
            raise ManifestError(f"{file}: partner {partner!r} of {info.name!r}: expected the id of a class, or -1")
    return infos


def _from_json(file: Path, text: str) -> list[ClassInfo]:
    content = parse_json(file, text)
    if isinstance(content, list) and all(isinstance(name, str | list) for name in content):
        names = [name if isinstance(name, str) else "+".join(map(str, name)) for name in content]
        return [ClassInfo(i, name) for i, name in enumerate(names)]
    if isinstance(content, dict) and all(str(number).isdecimal() for number in content.values()):
        return [ClassInfo(int(number), name) for name, number in content.items()]
    raise ManifestError(f"{file}: expected a JSON list of class names, or an object name -> id")


def _checked(file: Path, infos: Iterable[ClassInfo]) -> list[ClassInfo]:
    infos = sorted(infos, key=lambda info: info.id)
    if not infos or [info.id for info in infos] != list(range(len(infos))):
        raise ManifestError(f"{file}: {len(infos)} class ids {[i.id for i in infos][:20]}; expected 0, 1, 2, ... once")
    twice = sorted(name for name, count in Counter(info.name for info in infos).items() if count > 1)
    if twice:
        raise ManifestError(f"{file}: class names given twice: {twice}; names are prompts, and must differ")
    return infos
