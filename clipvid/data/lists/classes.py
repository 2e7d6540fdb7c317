"""Class lists in published formats, and the labels that refer to them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from clipvid import InputError
from clipvid.data.lists.delimited import Header, check_columns, find_header, read_rows
from clipvid.data.lists.samples import ClassInfo, ManifestError
from clipvid.data.lists.several import ADVICE
from clipvid.data.lists.text import clipped, is_number, parse_json, read_lines, whole_number
from clipvid.registry import suggest

WHAT = "list of classes"
_SYNONYMS = {
    **dict.fromkeys(("class_id", "label_id", "class_index", "index"), "id"),
    **dict.fromkeys(("class", "class_name", "label", "category"), "name"),
}
_NUMBERED = re.compile(r"c?(\d+)\s+(\S.*)")
# Words that a mirror exchanges. The first spelling on the right that gives an existing class is used.
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
    """Classes in id order. Labels are names, or numbers as counted in the list of classes.

    Args:
        classes: Classes with ids 0, 1, 2, ...
        first: Number of class 0 in the list (UCF101 counts from 1).
    """

    def __init__(self, classes: Sequence[ClassInfo], first: int = 0) -> None:
        self.classes, self.first = tuple(classes), first
        self.ids = {info.name: info.id for info in classes}

    def id_of(self, label: str) -> int:
        """Return the id of a label.

        Raises:
            ManifestError: No class has the label, or the text is several labels.
        """
        count, last = len(self.classes), self.first + len(self.classes) - 1
        if label in self.ids:
            return self.ids[label]
        number = whole_number(label)
        if number is not None and self.first <= number <= last:
            return number - self.first
        if is_several(label, self.ids):
            raise ManifestError(f"{clipped(label)} is several labels; {ADVICE}")
        if is_number(label):
            shown = clipped(label).strip("'")
            hint = "; ids count from 0, this list may count from 1" if number == last + 1 else ""
            problem = f"{shown} is outside of the {count} classes ({self.first}..{last}){hint}"
        else:
            hint = suggest(label[:200], self.ids)
            problem = f"{clipped(label)} is neither a class id nor one of the {count} class names{hint}"
        raise ManifestError(f"label {problem}; correct it, or pass the matching class list")


def is_several(text: str, names: Collection[str]) -> bool:
    """Return True if text is two or more labels (numbers or class names) with separators."""
    for separator in (r"[\s,;|/]+", r"\s*[,;|]\s*"):
        parts = [part for part in re.split(separator, text.strip("[](){} ")) if part]
        if len(parts) > 1 and all(part.strip("'\"") in names or is_number(part) for part in parts):
            return True
    return False


def read_classes(file: Path) -> ClassList:
    """Read a class list.

    Supported formats:
    - one name per line in id order
    - CSV with `id`, `name` and further columns, which are kept as attributes
    - lines `1 name` (UCF101) or `c000 name` (Charades) that count up from 0 or 1
    - JSON with a list of names (or lists of parts, as in Diving48), or with name -> id (Something-Something)

    Raises:
        ManifestError: Ids or names are invalid. The message has file and line.
        FileNotFoundError: The file does not exist.
    """
    lines = read_lines(file, WHAT)
    if file.suffix == ".json":
        return ClassList(_checked(file, _from_json(file, "\n".join(lines))))
    header = find_header(lines[0], ("id", "name"), _SYNONYMS) if lines else None
    if header is not None:
        return ClassList(_checked(file, _from_csv(file, header)))
    named = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    for number, name in named:
        if not any(letter.isalnum() for letter in name):
            raise ManifestError(f"{file}:{number}: {clipped(name)} is not a class name; correct or drop the line")
    numbered = [_NUMBERED.fullmatch(name) for _, name in named]
    first = (whole_number(numbered[0][1]) or 0) if numbered and numbered[0] else 0
    if numbered and first <= 1 and all(m and whole_number(m[1]) == i for i, m in enumerate(numbered, first)):
        named = [(number, match[2]) for (number, _), match in zip(named, numbered, strict=True) if match]
    else:
        first = 0
    return ClassList(_checked(file, [(line, ClassInfo(i, name)) for i, (line, name) in enumerate(named)]), first)


def mirror_map(names: Sequence[str], exchanged: dict[str, str] | None = None) -> list[int | None]:
    """Return for each class the class of its mirrored clips, or None if it must not be flipped.

    A class with `left`, `right`, `clockwise` or similar in its name maps to the class with the opposite words. An
    example is "Pulling something from left to right" and "... from right to left". Other classes map to themselves.

    Args:
        names: Class names in id order.
        exchanged: Pairs of names, in both directions, instead of those found in the names.

    Raises:
        InputError: A name in `exchanged` is not a class.
    """
    if exchanged is not None:
        ids = {name.lower(): i for i, name in enumerate(names)}
        unknown = sorted(name for name in {*exchanged, *exchanged.values()} if name.lower() not in ids)
        if unknown:
            raise InputError(f"label_map_flip has {unknown[:5]}, which are not class names{suggest(unknown[0], names)}")
        pairs = {ids[a.lower()]: ids[b.lower()] for a, b in exchanged.items()}
        pairs |= {b: a for a, b in pairs.items()}
        return [pairs.get(i, i) for i in range(len(names))]
    plain = [re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).lower() for name in names]  # SwipeLeft: swipe left
    ids = {name: i for i, name in enumerate(plain)}
    return [next((ids[other] for other in _mirrored(name) if other in ids), None) for name in plain]


def _mirrored(name: str) -> list[str]:
    """Return spellings of the mirrored name."""
    spellings = range(max(len(words) for words in _MIRRORED.values()))
    return [
        _MIRRORED_WORD.sub(lambda match, k=i: (_MIRRORED[match[0]] * len(spellings))[k], name)  # type: ignore[misc]
        for i in spellings
    ]


def _from_csv(file: Path, header: Header) -> list[tuple[int, ClassInfo]]:
    check_columns(f"{file}:1", header.names, header.columns, (), header.delimiter)
    infos = []
    for line, values in read_rows(file, header, WHAT):
        row = dict(zip(header.columns, values, strict=True))
        text, name = row.pop("id"), row.pop("name")
        number = whole_number(text)
        if not name:
            raise ManifestError(f"{file}:{line}: no name given; every row needs id, name")
        if number is None:
            raise ManifestError(f"{file}:{line}: class id {clipped(text)} is not a number; ids count from 0")
        infos.append((line, ClassInfo(number, name, row)))
    for line, info in infos:
        partner = whole_number(info.attributes.get("partner", "0"))
        if info.attributes.get("partner") != "-1" and (partner is None or partner >= len(infos)):
            shown = clipped(info.attributes["partner"])
            raise ManifestError(f"{file}:{line}: partner {shown} of {info.name!r}: expected the id of a class, or -1")
    return infos


def _from_json(file: Path, text: str) -> list[tuple[int, ClassInfo]]:
    content = parse_json(file, text)
    if isinstance(content, list) and all(isinstance(name, str | list) for name in content):
        names = [name if isinstance(name, str) else "+".join(map(str, name)) for name in content]
        return [(i + 1, ClassInfo(i, name)) for i, name in enumerate(names)]
    if isinstance(content, dict):
        numbers = [whole_number(str(number)) for number in content.values()]
        pairs = zip(content, numbers, strict=True)
        infos = [(i, ClassInfo(number, name)) for i, (name, number) in enumerate(pairs, 1) if number is not None]
        if len(infos) == len(content):
            return infos
    raise ManifestError(f"{file}: expected a JSON list of class names, or an object name -> id")


def _checked(file: Path, listed: Iterable[tuple[int, ClassInfo]]) -> list[ClassInfo]:
    """Return the classes of (line, class) in id order. Refuse missing ids and duplicate names or ids."""
    rows = list(listed)
    names: dict[str, int] = {}
    for line, info in rows:
        if info.name in names:
            raise ManifestError(
                f"{file}:{line}: class names given twice: [{clipped(info.name)}], first in line {names[info.name]}; "
                "names are prompts, and must differ"
            )
        names[info.name] = line
    infos = sorted((info for _, info in rows), key=lambda info: info.id)
    if not infos or [info.id for info in infos] != list(range(len(infos))):
        hint = "; this list counts from 1" if infos and [i.id for i in infos] == list(range(1, len(infos) + 1)) else ""
        raise ManifestError(
            f"{file}: {len(infos)} class ids {[i.id for i in infos][:20]}; expected 0, 1, 2, ... once{hint}"
        )
    return infos
