"""Lists, folders and shards are looked for below the root and in the working folder."""

from __future__ import annotations

import io
import shutil
import tarfile
import warnings
from pathlib import Path
from typing import Any

import pytest
from test_loader import grey_video

from clipvid.commands import run
from clipvid.data.lists import checks
from clipvid.data.manifest import ManifestError, load_manifest
from clipvid.experiments.protocols import build_protocol

KINDS: dict[str, Any] = {
    "text list": "l.txt",
    "csv": "lists/l.csv",
    "folder": "videos",
    "folder with a slash": "videos/",
    "shards": "s-{0..1}.tar",
    "pattern of shards": "s-*.tar",
    "named list": {"name": "list", "file": "l.txt"},
    "named folder": {"name": "folder", "folder": "videos"},
    "named shards": {"name": "webdataset", "shards": "s-*.tar"},
    "data set": {"name": "datasets", "path": "videofolder", "data_dir": "videos"},
}


def fill(folder: Path) -> None:
    """Write two videos of two classes as a folder, as lists and as shards."""
    for number, kind in enumerate(("run", "walk")):
        video = folder / "videos" / kind / "a b.mp4"
        video.parent.mkdir(parents=True)
        grey_video(video, 3 + number)
        with tarfile.open(folder / f"s-{number}.tar", "w") as tar:
            tar.add(video, "a.mp4")
            label = tarfile.TarInfo("a.cls")
            label.size = len(kind)
            tar.addfile(label, io.BytesIO(kind.encode()))
    (folder / "lists").mkdir()
    (folder / "lists/l.csv").write_text("path,label\nvideos/run/a b.mp4,run\nvideos/walk/a b.mp4,walk\n")
    (folder / "l.txt").write_text("videos/run/a b.mp4 run\nvideos/walk/a b.mp4 walk\n")
    (folder / "classes.txt").write_text("run\nwalk\n")


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> Path:
    fill(folder := tmp_path_factory.mktemp("filled"))
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch) -> Path:
    """The working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def read(source: Any, root: str = "data", classes: str = "classes.txt") -> list[bytes]:
    manifest = load_manifest(root, source, classes)
    assert [sample.label for sample in manifest.samples] == [0, 1]
    videos = [manifest.video(index) for index in range(2)]
    return [video if isinstance(video, bytes) else Path(video).read_bytes() for video in videos]


@pytest.mark.parametrize("kind", KINDS)
def test_source_below_the_root_is_found(kind: str, filled: Path, here: Path):
    shutil.copytree(filled, here / "data")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(KINDS[kind]) == read(KINDS[kind], str(here / "data"))


@pytest.mark.parametrize("root", ["present", "absent"])
@pytest.mark.parametrize("kind", KINDS)
def test_source_in_the_working_folder_is_found(kind: str, root: str, filled: Path, here: Path):
    shutil.copytree(filled, here, dirs_exist_ok=True)
    expected = [(here / f"videos/{name}/a b.mp4").read_bytes() for name in ("run", "walk")]
    if "list" in kind or kind == "csv":  # videos in lists are taken from the root
        shutil.move(here / "videos", here / "data/videos")
    elif root == "present":
        (here / "data").mkdir()
    assert read(KINDS[kind]) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_source_in_both_places_is_that_of_the_root_with_a_warning(kind: str, filled: Path, here: Path):
    shutil.copytree(filled, here, dirs_exist_ok=True)
    shutil.copytree(filled, here / "data")
    with pytest.warns(UserWarning, match=r"is in data.root and in the working folder: data.* is used, not /") as caught:
        read(KINDS[kind])
    assert {"classes.txt" in str(warning.message) for warning in caught} == {True, False}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(KINDS[kind], ".")
        read(KINDS[kind], str(here))


@pytest.mark.parametrize("kind", KINDS)
def test_source_in_neither_place_names_both(kind: str, here: Path):
    with pytest.raises(FileNotFoundError, match=rf"no .* at data/.* or {here}/.*data\.root"):
        load_manifest("data", KINDS[kind], None)


@pytest.mark.parametrize("name", ["nothing.txt", "nothing"])
def test_absolute_source_names_one_place(name: str, here: Path):
    with pytest.raises(FileNotFoundError) as caught:
        load_manifest("data", str(here / name), None)
    assert " or /" not in str(caught.value).split(";")[0]


def test_list_of_classes_in_neither_place_names_both(filled: Path, here: Path):
    with pytest.raises(FileNotFoundError, match=r"no list of classes at .*/c\.txt or .*/c\.txt"):
        load_manifest(filled, "l.txt", "c.txt")


@pytest.mark.parametrize("place", ["data", "."])
def test_lists_of_protocols_are_found_in_both_places(place: str, filled: Path, here: Path):
    shutil.copytree(filled, here / "data")
    (here / place / "shots.txt").write_text("videos/run/a b.mp4\n")
    (here / place / "base.txt").write_text("run\n")
    (here / "data/one.txt").write_text("videos/run/a b.mp4 run\n")
    train = load_manifest("data", "one.txt", "classes.txt")
    both = load_manifest("data", "l.txt", "classes.txt")
    few = build_protocol({"name": "few_shot", "shots": [1], "seeds": [0], "lists": "shots.txt"})
    assert [len(part.train) for part in few.parts(train, both, True)] == [1]
    novel = build_protocol({"name": "base_to_novel", "base": "base.txt", "shots": None})
    assert [len(part.test) for part in novel.parts(both, both, True)] == [1, 1]


def test_videos_beside_their_list_are_named_in_the_refusal(filled: Path, here: Path):
    shutil.copytree(filled, here / "mine")
    with pytest.raises(ManifestError, match=rf"no video at data/videos/run/a b.mp4\n(.*\n)*Set data.root={here}/mine"):
        load_manifest("data", "mine/l.txt", None)


def test_links_out_of_a_folder_in_the_working_folder_are_refused(filled: Path, here: Path):
    (here / "videos/run").mkdir(parents=True)
    (here / "videos/run/a.mp4").symlink_to(filled / "videos/run/a b.mp4")
    with pytest.raises(ManifestError, match="link out of"):
        load_manifest("data", "videos", None)
    assert len(load_manifest("data", "videos", None, allow_outside_root=True)) == 1


def test_paths_on_another_drive_are_outside_of_the_root(filled: Path, tmp_path: Path, monkeypatch):
    def refuse(path: str, start: str) -> str:
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    monkeypatch.setattr(checks.os.path, "relpath", refuse)
    (tmp_path / "l.txt").write_text("/elsewhere/a.mp4 run\n")
    with pytest.raises(ManifestError, match="is outside of the root"):
        load_manifest(filled, str(tmp_path / "l.txt"), "classes.txt")


def test_finetune_reads_folders_where_the_user_is(filled: Path, here: Path):
    for split in ("train", "val"):
        shutil.copytree(filled / "videos", here / "clips" / split)
    words = [
        "--data.train=clips/train/", "--data.val=clips/val", "--model.backbone=tiny", "--model.adapter=none",
        "--model.tune=[head]", "--model.head=linear", "--model.num_frames=2", "--output_dir=out", "--training.epochs=1",
        "--training.per_device_train_batch_size=2", "--training.report_to=none", "--data.num_workers=0",
    ]  # fmt: skip
    run("finetune", words)
    assert (here / "out/metrics.json").is_file()
    assert not (here / "data").exists()
