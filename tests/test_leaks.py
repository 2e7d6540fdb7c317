"""Videos that are in two splits are found across all kinds of source, by file and by content."""

from __future__ import annotations

import io
import itertools
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from test_loader import grey_video

import clipvid
from clipvid.commands import run
from clipvid.data.leaks import check_splits
from clipvid.data.manifest import Manifest, ManifestError, load_manifest
from clipvid.data.map_dataset import dataset_manifest

FILES = ["walk/a.mp4", "walk/b.mp4", "run/c.mp4", "run/d.mp4"]
CLASSES = ["run", "walk"]
# Kinds of source that name files, and those whose videos are inside of other files.
NAMING = ["list", "csv", "json", "folder", "datasets", "streaming"]
HOLDING = ["shards", "parquet"]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("leaks")
    for number, name in enumerate(FILES):
        (root / "all" / name).parent.mkdir(parents=True, exist_ok=True)
        grey_video(root / "all" / name, 4 + number)
    (root / "classes.txt").write_text("run\nwalk\n")
    return root


def write_shard(root: Path, names: list[str]) -> str:
    with tarfile.open(root / "all-0.tar", "w") as tar:
        for number, name in enumerate(names):
            tar.add(root / "all" / name, f"{number}.mp4")
            label = tarfile.TarInfo(f"{number}.cls")
            label.size = 1
            tar.addfile(label, io.BytesIO(str(CLASSES.index(name.split("/")[0])).encode()))
    return "all-{0..0}.tar"


@pytest.fixture(scope="module")
def make(root: Path, tmp_path_factory) -> Callable[[str, list[str]], Manifest]:
    """Manifest of some of `FILES` from a kind of source. The folder sources have all of them."""

    def build(kind: str, names: list[str]) -> Manifest:
        folder = tmp_path_factory.mktemp("list")
        rows = [(f"all/{name}", name.split("/")[0]) for name in names]
        files = {"list": "l.txt", "csv": "l.csv", "json": "l.json"}
        source = str(folder / files[kind]) if kind in files else "all"
        if kind == "list":
            Path(source).write_text("".join(f"{path} {label}\n" for path, label in rows))
        elif kind == "csv":
            Path(source).write_text("path,label\n" + "".join(f"{path},{label}\n" for path, label in rows))
        elif kind == "json":
            entries = ",".join(f'{{"path": "{path}", "label": "{label}"}}' for path, label in rows)
            Path(source).write_text(f"[{entries}]")
        elif kind == "shards":
            source = write_shard(root, names)
        elif kind == "parquet":
            videos = [{"bytes": (root / "all" / name).read_bytes(), "path": "x.mp4"} for name in names]
            pq.write_table(pa.table({"video": videos, "label": [label for _, label in rows]}), folder / "d.parquet")
            source = {"name": "datasets", "path": "parquet", "data_files": str(folder / "d.parquet")}
        elif kind in ("datasets", "streaming"):
            source = {"name": "datasets", "path": "videofolder", "data_dir": "all", "streaming": kind == "streaming"}
        return load_manifest(root, source, "classes.txt")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield build


@pytest.mark.parametrize(("first", "second"), itertools.product(NAMING, NAMING))
def test_the_same_file_is_found_across_kinds_of_source(first: str, second: str, make):
    with pytest.raises(ManifestError, match=r"2 videos are in both lists|4 videos are in both lists"):
        check_splits(make(first, FILES), make(second, FILES[:2]))


@pytest.mark.parametrize(("first", "second"), itertools.product(["csv", *HOLDING], HOLDING))
def test_the_same_bytes_are_found_across_kinds_of_source(first: str, second: str, make):
    train, val = make(first, FILES), make(second, FILES[:2])
    if (first, second) == ("shards", "shards"):
        val = make("parquet", FILES[:2])
    check_splits(train, val)
    with pytest.raises(ManifestError, match=r"2 videos are in both lists, such as \[.* = .*\]"):
        check_splits(train, val, "content")
    check_splits(train, val, "none")
    check_splits(make(first, FILES[:2]), make(second, FILES[2:]) if second != "shards" else val.subset([]), "content")


@pytest.mark.parametrize("name", ["all-{0..0}.tar", "all-*.tar", "link-0.tar"])
def test_the_same_place_of_a_shard_is_found_by_any_name(name: str, root: Path, make):
    train = make("shards", FILES)
    (root / "link-0.tar").unlink(missing_ok=True)
    (root / "link-0.tar").symlink_to("all-0.tar")
    with pytest.raises(ManifestError, match="4 videos are in both lists"):
        check_splits(train, load_manifest(root, name, "classes.txt"))


@pytest.mark.parametrize("kind", ["symbolic link", "hard link", "link of a folder", "other root", "copy"])
def test_other_names_of_a_file_are_found(kind: str, root: Path, make, tmp_path: Path):
    name, other = "x/v.mp4", tmp_path
    (tmp_path / "x").mkdir()
    if kind == "symbolic link":
        (tmp_path / name).symlink_to(root / "all" / FILES[0])
    elif kind == "hard link":
        os.link(root / "all" / FILES[0], tmp_path / name)
    elif kind == "link of a folder":
        (tmp_path / "y").symlink_to(root / "all/walk")
        name = "y/a.mp4"
    elif kind == "other root":
        name, other = "walk/a.mp4", root / "all"
    else:
        shutil.copy(root / "all" / FILES[0], tmp_path / name)
    (tmp_path / "l.csv").write_text(f"path,label,start\n{name},walk,0.04\n")
    val = load_manifest(other, str(tmp_path / "l.csv"), root / "classes.txt", allow_outside_root=True)
    train = make("csv", FILES)
    if kind == "copy":
        check_splits(train, val)
    else:
        with pytest.raises(ManifestError, match=rf"1 videos are in both lists, such as \['.*{name}"):
            check_splits(train, val)
    with pytest.raises(ManifestError, match="1 videos are in both lists"):
        check_splits(train, val, "content")
    check_splits(train.subset([2, 3]), val, "content")


def test_folders_of_frames_are_compared_by_path_and_content(tmp_path: Path):
    for split, shade in (("train/walk/one", 1), ("val/walk/two", 1), ("val/walk/three", 2)):
        (tmp_path / split).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(np.full((8, 8, 3), 20 * number + shade, np.uint8)).save(tmp_path / split / f"{number}.png")
    train, val = (load_manifest(tmp_path, split, None) for split in ("train", "val"))
    check_splits(train, val)
    with pytest.raises(ManifestError, match=r"\['train/walk/one = val/walk/two'\]"):
        check_splits(train, val, "content")
    (tmp_path / "val/walk/four").symlink_to(tmp_path / "train/walk/one")
    with pytest.raises(ManifestError, match="1 videos are in both lists"):
        check_splits(train, load_manifest(tmp_path, "val", None))


def test_items_of_datasets_are_compared_by_content():
    items = [{"frames": torch.full((2, 3, 8, 8), i, dtype=torch.uint8), "label": 0} for i in range(4)]
    train, val = (dataset_manifest(part, name, ["x"]) for part, name in ((items[:3], "train"), (items[2:], "val")))
    check_splits(train, val)
    with pytest.raises(ManifestError, match=r"train\[2\].*val\[0\]|val\[0\].*train\[2\]"):
        check_splits(train, val, "content")


def test_files_that_cannot_be_read_are_left_to_the_reader(root: Path, tmp_path: Path):
    (tmp_path / "l.csv").write_text("path,label\nall/gone.mp4,walk\nall/walk/a.mp4,walk\n")
    (tmp_path / "m.csv").write_text("path,label\nall/lost.mp4,walk\n")
    lists = [load_manifest(root, str(tmp_path / name), "classes.txt", check_files=False) for name in ("l.csv", "m.csv")]
    check_splits(*lists, "content")
    with pytest.raises(ManifestError, match=r"all/gone\.mp4"):
        check_splits(lists[0], lists[0].subset([0]))


def test_only_files_of_equal_size_are_read(root: Path, make, monkeypatch):
    read = []
    real = clipvid.data.leaks.hash_file
    monkeypatch.setattr("clipvid.data.leaks.hash_file", lambda file: read.append(file.name) or real(file))
    sizes = {name: (root / "all" / name).stat().st_size for name in FILES}
    assert len(set(sizes.values())) == 4
    check_splits(make("csv", FILES[:2]), make("csv", FILES[2:]), "content")
    assert read == []


@pytest.mark.parametrize("verb", ["finetune", "pretrain", "evaluate"])
@pytest.mark.parametrize("leak", ["file", "copy"])
def test_verbs_refuse_leaks_before_anything_is_written(
    verb: str, leak: str, root: Path, tmp_path: Path, capsys, monkeypatch
):
    name = "all/walk/a.mp4"
    if leak == "copy":
        name = "copies/a.mp4"
        (root / "copies").mkdir(exist_ok=True)
        shutil.copy(root / "all" / FILES[0], root / name)
    (tmp_path / "val.csv").write_text(f"path,label\n{name},walk\n")
    words = [
        f"--data.root={root}", "--data.train={name: datasets, path: videofolder, data_dir: all}",
        f"--data.val={tmp_path / 'val.csv'}", "--data.classes=classes.txt", f"--output_dir={tmp_path / 'run'}",
        *(["--recipe.model.backbone=tiny"] if verb == "evaluate" else ["--model.backbone=tiny"]),
        *([] if leak == "file" else ["--data.check_leaks=content"]),
    ]  # fmt: skip
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(SystemExit) as end:
        run(verb, words)
    assert end.value.code == 1
    assert "1 videos are in both lists" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
