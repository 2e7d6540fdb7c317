"""Text lists, CSV, JSON and Parquet: read correctly, or refused with file and line."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipvid.data.config import DataConfig
from clipvid.data.manifest import ManifestError, load_manifest
from clipvid.data.splits import load_split


def read(
    root: Path, name: str, content: str, classes: str | None = "walk\nrun\nriding bike\n"
) -> list[tuple[str, int]]:
    (root / name).write_bytes(content.encode())
    if classes is not None:
        (root / "classes.txt").write_text(classes)
    manifest = load_manifest(root, name, None if classes is None else "classes.txt", check_files=False)
    return [(sample.path, sample.label) for sample in manifest.samples]


@pytest.mark.parametrize("suffix", ["mp4", "avi", "MOV", "webm"])
@pytest.mark.parametrize("labels", ["0 1", "0 1 1", "walk run", "0 walk", "walk, run", "0,1", "0|1", "[0, 1]", "0\t1"])
@pytest.mark.parametrize("before", ["", "a.mp4 1\n", "frames/a 12 1\n"])
def test_multi_label_line_is_refused(suffix: str, labels: str, before: str, tmp_path: Path):
    line = before.count("\n") + 1
    with pytest.raises(ManifestError, match=rf"l\.txt:{line}: .*several labels"):
        read(tmp_path, "l.txt", f"{before}b c.{suffix} {labels}\n")


@pytest.mark.parametrize("labels", ["0 1", "0,1", "3 4 5"])
def test_multi_label_numbers_are_refused_without_classes(labels: str, tmp_path: Path):
    with pytest.raises(ManifestError, match=r"l\.txt:1: "):
        read(tmp_path, "l.txt", f"b.mp4 {labels}\n", classes=None)


@pytest.mark.parametrize("folder", ["frames/a", "a.b", "v_1.mp4x", "mp4"])
def test_frame_folders_may_have_a_number_of_frames(folder: str, tmp_path: Path):
    assert read(tmp_path, "l.txt", f"{folder} 120 1\nother 3 0\n") == [(folder, 1), ("other", 0)]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("my clips/a clip (1).mp4 0\nb.mp4 1\n", [("my clips/a clip (1).mp4", 0), ("b.mp4", 1)]),
        ("my clips/a clip (1).mp4\t0\nb.mp4\t1\n", [("my clips/a clip (1).mp4", 0), ("b.mp4", 1)]),
        ("b.mp4 riding bike\n", [("b.mp4", 2)]),
        ("a.mp4 copy.mp4 riding bike\n", [("a.mp4 copy.mp4", 2)]),
        ("ünï#1.mp4 0\n", [("ünï#1.mp4", 0)]),
        ("\ufeffb.mp4 1\r\n", [("b.mp4", 1)]),
        ("  b.mp4   run  \r\n\r\n", [("b.mp4", 1)]),
        ("riding bike/a.mp4\n", [("riding bike/a.mp4", 2)]),
    ],
)
def test_lines_of_path_and_label(content: str, expected: list[tuple[str, int]], tmp_path: Path):
    assert read(tmp_path, "l.txt", content) == expected


def test_multi_word_labels_without_classes(tmp_path: Path):
    assert read(tmp_path, "l.txt", "a.mp4 riding bike\nb.mp4 riding horse\n", None) == [("a.mp4", 0), ("b.mp4", 1)]


@pytest.mark.parametrize("path", ["path", "Path", "video_name", "file-name", " Video "])
@pytest.mark.parametrize("label", ["label", "LABEL", "class", "class name"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize(("start", "end"), [("", "\n"), ("\ufeff", "\r\n")])
def test_headers_delimiters_marks_and_line_ends(
    path: str, label: str, delimiter: str, start: str, end: str, tmp_path: Path
):
    rows = [(path, label), ("b.mp4", "walk"), ("c d.mp4", " riding bike ")]
    content = start + "".join(f"{first}{delimiter}{second}{end}" for first, second in rows)
    assert read(tmp_path, "l.csv", content) == [("b.mp4", 0), ("c d.mp4", 2)]


@pytest.mark.parametrize("label", ["3", "-1", "runn", "", "0;1", "walk|run"])
@pytest.mark.parametrize("name", ["l.txt", "l.csv"])
def test_unknown_labels_are_refused_with_line(label: str, name: str, tmp_path: Path):
    content = f"a.mp4 0\nb.mp4 {label}\n" if name == "l.txt" else f"path,label\nb.mp4,{label}\n"
    with pytest.raises(ManifestError, match=rf"{name}:2: "):
        read(tmp_path, name, content)


def test_ids_that_count_from_one_are_explained(tmp_path: Path):
    with pytest.raises(ManifestError, match=r"l\.txt:1: .*may count from 1"):
        read(tmp_path, "l.txt", "b.mp4 3\n")


@pytest.mark.parametrize("names", ["walk\nwalk\n", "id,name\n0,walk\n1,walk\n", "1 walk\n2 walk\n"])
def test_duplicate_class_names_are_refused_with_line(names: str, tmp_path: Path):
    with pytest.raises(ManifestError, match=r"classes\.txt:\d: .*given twice"):
        read(tmp_path, "l.txt", "b.mp4 1\n", names)


def write_table(file: Path, rows: list[dict[str, str]]) -> None:
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows))
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        file.write_text("\n".join(",".join(row) for row in [rows[0].keys(), *(row.values() for row in rows)]) + "\n")


tables = pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])


@tables
@pytest.mark.parametrize("column", ["note", "tags", "strat", "fold"])
def test_unknown_columns_are_refused_by_name(column: str, suffix: str, tmp_path: Path):
    write_table(tmp_path / f"l{suffix}", [{"path": "a.mp4", "label": "walk", column: "1"}])
    with pytest.raises(ManifestError, match=f"unknown column '{column}'.*expected path, label"):
        load_manifest(tmp_path, f"l{suffix}", None, check_files=False)


@tables
def test_columns_are_named_by_synonyms_in_all_tables(suffix: str, tmp_path: Path):
    write_table(tmp_path / f"l{suffix}", [{"Video": "a.mp4", "class_name": "walk", "caption": "one", "start": "1.5"}])
    (sample,) = load_manifest(tmp_path, f"l{suffix}", None, check_files=False).samples
    assert (sample.path, sample.caption, sample.start) == ("a.mp4", "one", 1.5)


@tables
@pytest.mark.parametrize(("train", "val"), [("train", "val"), ("Train", "validation"), ("training", "test")])
@pytest.mark.parametrize("classes", ["classes.txt", None])
def test_a_split_column_is_honored(train: str, val: str, suffix: str, classes: str | None, tmp_path: Path):
    (tmp_path / "classes.txt").write_text("run\nwalk\n")
    labels = [("a.mp4", "walk", train), ("b.mp4", "run", val), ("c.mp4", "run", train)]
    write_table(tmp_path / f"l{suffix}", [dict(zip(("path", "label", "split"), row, strict=True)) for row in labels])
    data = DataConfig(str(tmp_path), f"l{suffix}", f"l{suffix}", classes, check_files=False)
    actual = {split: [(s.path, s.label) for s in load_split(data, split).samples] for split in ("train", "val")}
    assert actual == {"train": [("a.mp4", 1), ("c.mp4", 0)], "val": [("b.mp4", 0)]}
    assert len(load_manifest(tmp_path, f"l{suffix}", "classes.txt", check_files=False)) == 3


@tables
@pytest.mark.parametrize(("value", "problem"), [("tset", ":2: split 'tset'|:1: split 'tset'"), ("test", "has .'test'")])
def test_unknown_and_missing_splits_are_refused(value: str, problem: str, suffix: str, tmp_path: Path):
    write_table(tmp_path / f"l{suffix}", [{"path": "a.mp4", "label": "walk", "split": value}])
    with pytest.raises(ManifestError, match=problem):
        load_manifest(tmp_path, f"l{suffix}", None, check_files=False, split="train")


@pytest.mark.parametrize("train", ["train.txt", "train.csv", "videos"])
@pytest.mark.parametrize("has_classes", [False, True])
def test_the_default_list_of_classes_may_be_missing(train: str, has_classes: bool, tmp_path: Path):
    for name in ("walk", "run"):
        (tmp_path / "videos" / name).mkdir(parents=True)
        (tmp_path / "videos" / name / "a.mp4").write_bytes(b"video")
    (tmp_path / "train.txt").write_text("videos/walk/a.mp4 walk\nvideos/run/a.mp4 run\n")
    (tmp_path / "train.csv").write_text("path,label\nvideos/walk/a.mp4,walk\nvideos/run/a.mp4,run\n")
    (tmp_path / "val.txt").write_text("b.mp4 walk\n")
    if has_classes:
        (tmp_path / "classes.csv").write_text("id,name\n0,walk\n1,run\n")
    data = DataConfig(str(tmp_path), train, "val.txt", check_files=False)
    expected = ["walk", "run"] if has_classes else ["run", "walk"]
    assert load_split(data, "train").class_names == load_split(data, "val").class_names == expected


def test_another_list_of_classes_must_exist(tmp_path: Path):
    (tmp_path / "train.txt").write_text("a.mp4 walk\n")
    with pytest.raises(FileNotFoundError, match=r"names\.csv"):
        load_split(DataConfig(str(tmp_path), "train.txt", classes="names.csv", check_files=False), "train")
