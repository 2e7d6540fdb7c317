"""Readers of the published annotation files of video data sets.

Each reader takes the folder of the annotations. It returns the class names in id order and, by split, (name, label) of
each video. The name is that of the file without suffix, or of the folder of frames. Videos without a label are omitted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipvid.data.lists.classes import read_classes
from clipvid.data.lists.delimited import find_header, read_rows, split_line
from clipvid.data.lists.samples import ManifestError
from clipvid.data.lists.text import parse_json, read_lines

LabeledFiles = list[tuple[tuple[str, ...], str]]


@dataclass(frozen=True)
class Annotations:
    """Annotations of a data set.

    Attributes:
        classes: Names in id order.
        splits: Split -> (possible names, class name) of each video.
    """

    classes: list[str]
    splits: dict[str, LabeledFiles]


def kinetics(folder: Path, split: int) -> Annotations:
    """Read Kinetics-400/600/700 (https://arxiv.org/abs/1705.06950).

    The CSV has label, youtube_id, time_start, time_end, split. Videos are `<id>_<start>_<end>`, six digits each, or
    `<id>`.
    """
    splits: dict[str, LabeledFiles] = {}
    for file in sorted(folder.rglob("*.csv")):
        lines = read_lines(file, "annotation")
        header = find_header(lines[0], ("label", "youtube_id"), {}) if lines else None
        rows = [] if header is None else [values for _, values in read_rows(file, header, "annotation")]
        for values in rows:
            row = dict(zip(header.columns if header else (), values, strict=True))
            if not row["label"]:  # the test set has none
                break
            names: tuple[str, ...] = (row["youtube_id"],)
            if row.get("time_start"):
                start, end = (int(float(row[key])) for key in ("time_start", "time_end"))
                names = (f"{row['youtube_id']}_{start:06d}_{end:06d}", row["youtube_id"])
            part = (row.get("split") or file.stem).lower()
            part = next((kind for word, kind in _SPLIT_WORDS.items() if word in part), part)
            splits.setdefault(part, []).append((names, row["label"]))
    _need(splits, folder, "CSV files with the columns label and youtube_id")
    return Annotations(sorted({label for rows in splits.values() for _, label in rows}), splits)


def something_something(folder: Path, split: int) -> Annotations:
    """Read Something-Something V2 (https://arxiv.org/abs/1706.04261): labels.json, train.json, validation.json."""
    classes = [info.name for info in read_classes(_one(folder, "*labels.json")).classes]
    splits: dict[str, LabeledFiles] = {}
    for part, pattern in (("train", "*train.json"), ("val", "*validation.json")):
        file = _one(folder, pattern)
        rows = parse_json(file, "\n".join(read_lines(file, "annotation")))
        splits[part] = [((str(row["id"]),), re.sub(r"[\[\]]", "", row["template"])) for row in rows]
    return Annotations(classes, splits)


def ucf101(folder: Path, split: int) -> Annotations:
    """Read UCF101 (https://arxiv.org/abs/1212.0402): classInd.txt, trainlist0N.txt, testlist0N.txt."""
    classes = [info.name for info in read_classes(_one(folder, "classInd.txt")).classes]
    splits: dict[str, LabeledFiles] = {}
    for part, name in (("train", "trainlist"), ("val", "testlist")):
        lines = read_lines(_one(folder, f"{name}{split:02d}.txt"), "annotation")
        paths = [line.split()[0] for line in lines if line.strip()]
        splits[part] = [((Path(path).stem,), path.split("/")[0]) for path in paths]
    return Annotations(classes, splits)


def hmdb51(folder: Path, split: int) -> Annotations:
    """Read HMDB51 (Kuehne et al., ICCV 2011): `<class>_test_splitN.txt`, with 1 for training and 2 for testing."""
    splits: dict[str, LabeledFiles] = {"train": [], "val": []}
    classes = []
    for file in sorted(folder.rglob(f"*_test_split{split}.txt")):
        name = file.name.removesuffix(f"_test_split{split}.txt").replace("_", " ")
        classes.append(name)
        for line in filter(str.strip, read_lines(file, "annotation")):
            video, use = line.rsplit(maxsplit=1)
            if use in ("1", "2"):
                splits["train" if use == "1" else "val"].append(((Path(video).stem,), name))
    _need(splits["train"], folder, f"files <class>_test_split{split}.txt")
    return Annotations(classes, splits)


def diving48(folder: Path, split: int) -> Annotations:
    """Read Diving48 (Li et al., ECCV 2018): Diving48_vocab.json, Diving48_V2_train.json, Diving48_V2_test.json."""
    classes = [info.name for info in read_classes(_one(folder, "*vocab.json")).classes]
    splits: dict[str, LabeledFiles] = {}
    for part, pattern in (("train", "*train.json"), ("val", "*test.json")):
        file = _one(folder, pattern)
        rows = parse_json(file, "\n".join(read_lines(file, "annotation")))
        splits[part] = [((str(row["vid_name"]),), _name(classes, int(row["label"]), file)) for row in rows]
    return Annotations(classes, splits)


def jester(folder: Path, split: int) -> Annotations:
    """Read Jester (Materzynska et al., ICCVW 2019): `*labels.csv`, `*train.csv`, `*validation.csv` with `id;label`."""
    classes = [line.strip() for line in read_lines(_one(folder, "*labels.csv"), "annotation") if line.strip()]
    splits: dict[str, LabeledFiles] = {}
    for part, pattern in (("train", "*train.csv"), ("val", "*validation.csv")):
        lines = read_lines(_one(folder, pattern), "annotation")
        splits[part] = [((video,), label) for video, label in (split_line(line, ";") for line in lines if line.strip())]
    return Annotations(classes, splits)


_SPLIT_WORDS = {"train": "train", "val": "val", "test": "test"}
READERS: dict[str, Callable[[Path, int], Annotations]] = {
    "k400": kinetics,
    "k600": kinetics,
    "k700": kinetics,
    "ssv2": something_something,
    "ucf101": ucf101,
    "hmdb51": hmdb51,
    "diving48": diving48,
    "jester": jester,
}


def read_public_dataset(dataset: str, folder: Path, split: int) -> Annotations:
    """Read the annotations of a data set of `READERS`. `split` is 1 to 3 for UCF101 and HMDB51.

    Raises:
        ManifestError: The files differ from the published format.
        FileNotFoundError: A file is missing.
    """
    try:
        annotations = READERS[dataset](folder, split)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ManifestError):
            raise
        raise ManifestError(f"the annotations of {dataset} in {folder} are not as published ({error!r})") from None
    classes = set(annotations.classes)
    for part, rows in annotations.splits.items():
        unknown = sorted({label for _, label in rows} - classes)
        if unknown:
            raise ManifestError(f"{folder}: {part} has labels that are not classes of {dataset}: {unknown[:5]}")
    return annotations


def _one(folder: Path, pattern: str) -> Path:
    files = sorted(folder.rglob(pattern), key=lambda path: (len(path.parts), path.name))
    if not files:
        raise FileNotFoundError(
            f"no {pattern} in or below {folder}; set --annotations to the folder of the annotations"
        )
    return files[0]


def _need(items: Iterable[Any], folder: Path, what: str) -> None:
    if not any(True for _ in items):
        raise FileNotFoundError(f"no {what} in or below {folder}; set --annotations to their folder")


def _name(classes: list[str], label: int, file: Path) -> str:
    if not 0 <= label < len(classes):
        raise ManifestError(f"{file}: label {label} is outside of the {len(classes)} classes")
    return classes[label]


def located(root: Path, videos: Iterator[Path], rows: LabeledFiles) -> tuple[list[tuple[str, str]], list[str]]:
    """Return (path from the root, class name) of the videos found by name, and the names of missing videos."""
    places = {path.stem if path.is_file() else path.name: path.relative_to(root).as_posix() for path in videos}
    present, missing = [], []
    for names, label in rows:
        place = next((places[name] for name in names if name in places), None)
        if place is None:
            missing.append(names[0])
        else:
            present.append((place, label))
    return present, missing
