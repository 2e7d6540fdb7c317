"""All sources of videos give the same samples and the same frames."""

import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from test_loader import grey_video, levels

from clipvid.data import manifest as manifest_module
from clipvid.data.batches import EvalBatches
from clipvid.data.config import DataConfig
from clipvid.data.leaks import check_splits
from clipvid.data.lists import tables
from clipvid.data.lists.classes import read_classes
from clipvid.data.loader import VideoDataset, build_loader
from clipvid.data.manifest import Manifest, ManifestError, Sample, load_manifest
from clipvid.data.reader import VideoError, open_video
from clipvid.data.sampling import FrameSampling
from clipvid.data.splits import load_split
from clipvid.data.transforms import eval_transforms

SHARED_LABELS = Path(os.environ.get("CLIPVID_SHARED_DATA", Path(__file__).parents[1] / "../shared/data")) / "labels"
VIDEOS = {"up": ["a.mp4", "b.mp4"], "side walk": ["c.mp4", "d.mp4"]}
PATHS = [f"{kind}/{name}" for kind in sorted(VIDEOS) for name in VIDEOS[kind]]
LABELS = [0, 0, 1, 1]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two classes of two videos each. Video i has 8 + i frames."""
    root = tmp_path_factory.mktemp("sources")
    for i, path in enumerate(PATHS):
        (root / "train" / path).parent.mkdir(parents=True, exist_ok=True)
        grey_video(root / "train" / path, 8 + i)
    (root / "classes.txt").write_text("side walk\nup\n")
    return root


def shown(manifest: Manifest, num_frames: int = 4) -> list[list[int]]:
    """Return the frame numbers of the clip of each sample, through a loader with a worker."""
    transforms = eval_transforms(16)
    dataset = VideoDataset(manifest, FrameSampling("uniform", num_frames), transforms, seed=0, training=False)
    batches = list(build_loader(dataset, EvalBatches(len(manifest), 2), 1))
    assert all(batch["readable"].all() for batch in batches)
    return [levels(clip[0]) for batch in batches for clip in batch["frames"]]


WHOLE = [[1, 3, 5, 7], [1, 3, 5, 7], [1, 3, 6, 8], [1, 4, 6, 9]]


ROWS = [
    {
        "path": "train/side walk/c.mp4",
        "label": "side walk",
        "start": 0.08,
        "end": 0.24,
        "caption": "a,b",
        "group": "x",
    },
    {"path": "train/side walk/c.mp4", "label": "side walk", "start": 0.24, "end": None, "caption": None, "group": "x"},
    {"path": "train/up/a.mp4", "label": "1", "start": None, "end": None, "caption": 'said "so"', "group": "y"},
]


def write_rows(file: Path) -> None:
    if file.suffix == ".csv":
        pa.csv.write_csv(pa.Table.from_pylist(ROWS), file)
    elif file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), file)
    elif file.suffix == ".json":
        file.write_text(json.dumps(ROWS))
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
@pytest.mark.parametrize("large", [False, True])
def test_all_table_formats_are_equivalent(suffix: str, large: bool, root: Path, tmp_path: Path, monkeypatch):
    file = tmp_path / f"list{suffix}"
    write_rows(file)
    if large:
        monkeypatch.setattr(tables, "LARGE_BYTES", 1)
        monkeypatch.setattr(manifest_module, "LARGE_BYTES", 1)
        monkeypatch.setenv("CLIPVID_CACHE", str(tmp_path / "cache"))
    manifest = load_manifest(root, str(file), "classes.txt")
    assert tuple(manifest.samples) == (
        Sample("train/side walk/c.mp4", 0, "x", 0.08, 0.24, "a,b"),
        Sample("train/side walk/c.mp4", 0, "x", 0.24, None, None),
        Sample("train/up/a.mp4", 1, "y", None, None, 'said "so"'),
    )
    assert [manifest.samples[i] for i in (0, -1)] == [manifest.samples[0:1][0], manifest.samples[2]]
    assert len(list((tmp_path / "cache").glob("manifests/*.arrow"))) == large
    again = pickle.loads(pickle.dumps(load_manifest(root, str(file), "classes.txt")))
    assert (tuple(again.samples), again.hash) == (tuple(manifest.samples), manifest.hash)
    assert shown(manifest, 2) == [[3, 5], [6, 7], [2, 7]]


def test_part_beyond_the_end_is_a_bad_video(root: Path, tmp_path: Path, capsys):
    file = tmp_path / "list.csv"
    file.write_text("path,label,start,end\ntrain/up/a.mp4,up,5,6\ntrain/up/b.mp4,up,0.1,0.11\n")
    dataset = VideoDataset(
        load_manifest(root, str(file), "classes.txt"), FrameSampling("uniform", 2), eval_transforms(16), seed=0,
        training=False,
    )  # fmt: skip
    (batch,) = build_loader(dataset, EvalBatches(2, 2), 0)
    assert batch["readable"].tolist() == [False, True]
    assert levels(batch["frames"][1, 0]) == [2, 2]
    assert "train/up/a.mp4: it ends after 0.40 s, before its part from 5.00 s" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "path,label,start,end\na.mp4,up,3,2\n", r"x\.csv:2: start 3\.0 and end 2\.0"),
        ("x.csv", "path,label,start\na.mp4,up,soon\n", r"column 'start' is in seconds"),
        ("x.csv", "path,label\na.mp4,upp\n", r"x\.csv:2: label 'upp' is neither .*did you mean 'up'"),
        ("x.csv", "path,label,start\na.mp4,up,1\na.mp4,up,1\n", r"x\.csv:3: already listed at .*x\.csv:2"),
        ("x.csv", "path,label,start,end\na.mp4,up,1,\na.mp4,up,1,\n", r"x\.csv:3: already listed at .*x\.csv:2"),
        ("x.json", "[{", r"x\.json:1: not JSON"),
        ("x.json", "{}", "list of objects"),
        ("x.jsonl", '{"path": "a.mp4", "label": 1}\n{"path": "b.mp4"\n', r"x\.jsonl:2: not a line of JSON"),
        ("x.jsonl", '{"path": "a.mp4", "label": 1}\n{"path": "b.mp4"}\n', r"x\.jsonl:2: no label given"),
        ("x.parquet", "PAR", "not a Parquet file"),
        ("x.tar", "text", "not a shard"),
    ],
)
@pytest.mark.parametrize("large", [False, True])
def test_bad_tables_are_refused(name: str, content: str, message: str, large: bool, tmp_path: Path, monkeypatch):
    (tmp_path / name).write_text(content)
    (tmp_path / "classes.txt").write_text("side walk\nup\n")
    if large:
        monkeypatch.setattr(tables, "LARGE_BYTES", 1)
        monkeypatch.setattr(manifest_module, "LARGE_BYTES", 1)
        monkeypatch.setenv("CLIPVID_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ManifestError, match=message):
        load_manifest(tmp_path, name, "classes.txt", check_files=False)
    assert not list(tmp_path.glob("cache/manifests/*"))


def test_a_large_list_is_read_again_when_it_changes(root: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tables, "LARGE_BYTES", 1)
    monkeypatch.setattr(manifest_module, "LARGE_BYTES", 1)
    monkeypatch.setenv("CLIPVID_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "list.csv"
    file.write_text("path, label\n./train/up/a.mp4, up\n\ntrain/up/b.mp4,1\n")
    first = load_manifest(root, str(file), "classes.txt")
    assert [sample.path for sample in first.samples] == ["train/up/a.mp4", "train/up/b.mp4"]
    file.write_text("path,label\ntrain/up/b.mp4,1\n")
    assert [sample.path for sample in load_manifest(root, str(file), "classes.txt").samples] == ["train/up/b.mp4"]
    file.write_text("path,label\n../train/up/b.mp4,1\n")
    with pytest.raises(ManifestError, match="outside of the root"):
        load_manifest(root, str(file), "classes.txt")


def test_a_folder_of_classes(root: Path):
    manifest = load_manifest(root, "train", None)
    assert manifest.class_names == ["side walk", "up"]
    expected = tuple(Sample(f"train/{path}", label) for path, label in zip(PATHS, LABELS, strict=True))
    assert tuple(manifest.samples) == expected
    assert shown(manifest) == WHOLE
    assert load_manifest(root, {"name": "folder", "folder": "train"}, "classes.txt").hash == manifest.hash


def test_groups_are_found_below_the_folder_of_classes(tmp_path: Path):
    """Folders above the classes may match the pattern, too."""
    folder = tmp_path / "my_videos"
    for video in ("walk/ann_1.mp4", "walk/bob_1.mp4", "run/ann_2.mp4"):
        (folder / video).parent.mkdir(parents=True, exist_ok=True)
        (folder / video).touch()
    for root, source in ((tmp_path, "my_videos"), (folder, "."), (tmp_path / "my_root", str(folder))):
        manifest = load_manifest(root, source, None, group_pattern="/([a-z]+)_")
        assert [sample.group for sample in manifest.samples] == ["ann", "ann", "bob"]


def test_folders_of_frames_are_videos(root: Path, tmp_path: Path):
    for name, total in (("walk/one", 12), ("walk/two", 8), ("run/three", 9)):
        (tmp_path / "frames" / name).mkdir(parents=True)
        for i in range(total):
            Image.fromarray(np.full((24, 32, 3), 10 * i, np.uint8)).save(tmp_path / "frames" / name / f"img_{i}.png")
        (tmp_path / "frames" / name / "notes.txt").write_text("not a frame")
    with pytest.warns(UserWarning, match=r"frames: files without the suffix of a video are skipped: 3 \.txt$"):
        manifest = load_manifest(tmp_path, "frames", None)
    assert [sample.path for sample in manifest.samples] == [
        f"frames/{n}" for n in ("run/three", "walk/one", "walk/two")
    ]
    assert shown(manifest) == [[1, 3, 5, 7], [1, 4, 7, 10], [1, 3, 5, 7]]
    (tmp_path / "list.txt").write_text("frames/run/three 9 0\nframes/walk/one 12 1\n")
    (tmp_path / "classes.txt").write_text("run\nwalk\n")
    listed = load_manifest(tmp_path, "list.txt", "classes.txt")
    assert [(sample.path, sample.label) for sample in listed.samples] == [
        ("frames/run/three", 0),
        ("frames/walk/one", 1),
    ]
    (tmp_path / "frames/run/three/img_5.png").write_bytes(b"cut")
    dataset = VideoDataset(manifest, FrameSampling("uniform", 4), eval_transforms(16), seed=0, training=False)
    item = dataset[(0, 0)]
    assert not item["readable"]
    assert "img_5.png is not a readable image" in item["failures"][0].reason


def test_shards_of_webdataset(root: Path, tmp_path: Path):
    for shard in range(2):
        with tarfile.open(tmp_path / f"train-{shard:02d}.tar", "w") as tar:
            for i in (2 * shard, 2 * shard + 1):
                tar.add(root / "train" / PATHS[i], f"{i:04d}.mp4")
                output = {"cls": str(LABELS[i]), "txt": f"number {i}"}
                if i == 3:
                    output = {"json": json.dumps({"label": "up", "caption": "number 3"})}
                for suffix, text in output.items():
                    member = tarfile.TarInfo(f"{i:04d}.{suffix}")
                    member.size = len(text)
                    tar.addfile(member, io.BytesIO(text.encode()))
    absolute = load_manifest(root, f"{tmp_path}/train-*.tar", "classes.txt", allow_outside_root=True)
    assert [sample.label for sample in absolute.samples] == LABELS
    assert shown(absolute) == WHOLE
    for shards in ("train-{00..01}.tar", "train-*.tar"):
        manifest = load_manifest(tmp_path, shards, root / "classes.txt")
        assert [sample.label for sample in manifest.samples] == LABELS
        assert manifest.samples[1].path == "train-00.tar/0001.mp4"
        assert [sample.caption for sample in manifest.samples] == [f"number {i}" for i in range(4)]
        assert manifest.video(2) == (root / "train" / PATHS[2]).read_bytes()
        assert shown(manifest) == WHOLE
    with pytest.raises(FileNotFoundError, match=r"no shard at .*val-\*\.tar"):
        load_manifest(tmp_path, "val-*.tar", root / "classes.txt")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.1.mp4": "", "a.2.mp4": "", "a.cls": "0"}, r"a\.1\.mp4 and a\.2\.mp4 have one key"),
        ({"a.mp4": "", "a.json": "[1]"}, r"\['a\.mp4'\] have no label"),
        ({"a.mp4": "", "a.json": '{"label": null}'}, r"\['a\.mp4'\] have no label"),
        ({"._a.mp4": "", "a.cls": "0"}, "it contains no video"),
    ],
)
def test_odd_shards_are_refused(members: dict, message: str, root: Path, tmp_path: Path):
    with tarfile.open(tmp_path / "odd.tar", "w") as tar:
        for name, text in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    with pytest.raises(ManifestError, match=message):
        load_manifest(tmp_path, "odd.tar", root / "classes.txt")


def test_skipped_files_are_named_in_plain_letters(root: Path, tmp_path: Path):
    (tmp_path / "train" / "run").mkdir(parents=True)
    (tmp_path / "train" / "run" / "a.mp4").touch()
    for name in ("notes", "b.\x1b[31mred", f"c.{'x' * 100}", "d.rmvb", "e.RMVB"):
        (tmp_path / "train" / "run" / name).touch()
    with pytest.warns(UserWarning, match="are skipped: 2 .rmvb, ") as caught:
        load_manifest(tmp_path, "train", None)
    text = str(caught[0].message)
    assert "1 without a suffix" in text
    assert "\x1b" not in text
    assert "x" * 21 not in text


@pytest.mark.parametrize("suffix", ["webp", "png"])
def test_animations_are_not_taken_for_frames(suffix: str, tmp_path: Path):
    (tmp_path / "jump").mkdir()
    pictures = [Image.new("RGB", (8, 8), (number * 50, 0, 0)) for number in range(4)]
    for name in "ab":
        pictures[0].save(tmp_path / "jump" / f"{name}.{suffix}", save_all=True, append_images=pictures[1:])
    with open_video(tmp_path / "jump") as video, pytest.raises(VideoError, match=rf"a\.{suffix} has several pictures"):
        video.read([0, 1])
    with open_video(tmp_path / "jump" / f"a.{suffix}") as video:
        assert len(video) == 4


def test_images_next_to_videos_are_not_frames(root: Path, tmp_path: Path):
    for kind, names in VIDEOS.items():
        (tmp_path / "train" / kind).mkdir(parents=True)
        for name in names:
            (tmp_path / "train" / kind / name).write_bytes((root / "train" / kind / name).read_bytes())
            Image.new("RGB", (8, 8)).save(tmp_path / "train" / kind / f"{name}.jpg")
    manifest = load_manifest(tmp_path, "train", None)
    assert [sample.path for sample in manifest.samples] == [f"train/{path}" for path in PATHS]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_video_folder_of_datasets(streaming: bool, root: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    source = {"name": "datasets", "path": "videofolder", "data_dir": "train", "streaming": streaming}
    manifest = load_manifest(root, source, None)
    assert manifest.class_names == ["side walk", "up"]
    assert [sample.label for sample in manifest.samples] == LABELS
    assert shown(manifest) == WHOLE


def test_a_parquet_data_set_with_the_videos_inside(root: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    videos = [{"bytes": (root / "train" / path).read_bytes(), "path": Path(path).name} for path in PATHS]
    table = pa.table({"clip": videos, "kind": [path.split("/")[0] for path in PATHS], "text": PATHS})
    pq.write_table(table, tmp_path / "data.parquet")
    source = {
        "name": "datasets", "path": "parquet", "data_files": str(tmp_path / "data.parquet"), "video": "clip",
        "label": "kind", "caption": "text",
    }  # fmt: skip
    manifest = load_manifest(root, source, "classes.txt")
    assert [sample.label for sample in manifest.samples] == LABELS
    assert manifest.samples[3].caption == PATHS[3]
    assert shown(manifest) == WHOLE
    assert shown(pickle.loads(pickle.dumps(manifest)).subset([3, 0])) == [WHOLE[3], WHOLE[0]]
    with pytest.raises(ManifestError, match="streaming: false"):
        load_manifest(root, source | {"streaming": True}, "classes.txt")
    with pytest.raises(ManifestError, match=r"columns \['clip', 'kind', 'text'\], but no 'video'"):
        load_manifest(root, source | {"video": "video"}, "classes.txt")
    pq.write_table(table, tmp_path / "other.parquet")
    other = load_manifest(root, source | {"data_files": str(tmp_path / "other.parquet")}, "classes.txt")
    check_splits(manifest, other)
    assert manifest.hash != other.hash
    pq.write_table(table.set_column(0, "clip", pa.array([*videos[:3], None])), tmp_path / "null.parquet")
    with pytest.raises(ManifestError, match="row 3 has no video"):
        load_manifest(root, source | {"data_files": str(tmp_path / "null.parquet")}, "classes.txt")


def test_datasets_row_without_label_is_refused(root: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features({"video": datasets.Video(), "label": datasets.ClassLabel(names=["side walk", "up"])})
    rows = {"video": [str(root / "train" / path) for path in PATHS[:2]], "label": [1, -1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "some.parquet")
    source = {"name": "datasets", "path": "parquet", "data_files": str(tmp_path / "some.parquet")}
    with pytest.raises(ManifestError, match="row 1 has the label -1, which is not a class"):
        load_manifest(root, source, "classes.txt")


def test_splits_share_the_classes_of_training(root: Path, tmp_path: Path):
    (tmp_path / "train.csv").write_text("path,label\na.mp4,walk\nb.mp4,run\n")
    (tmp_path / "val.csv").write_text("path,label\nc.mp4,walk\n")
    config = DataConfig(root=str(tmp_path), classes=None, check_files=False)
    train, val = load_split(config, "train"), load_split(config, "val")
    assert train.class_names == val.class_names == ["run", "walk"]
    check_splits(train, val)
    (tmp_path / "val.csv").write_text("path,label\nc.mp4,swim\n")
    with pytest.raises(ManifestError, match=r"val\.csv:2: label 'swim' is neither"):
        load_split(config, "val")
    (tmp_path / "val.csv").write_text("path,label,start\n./b.mp4,run,2\n")
    with pytest.raises(ManifestError, match=r"1 videos are in both lists, such as \['b\.mp4'\]"):
        check_splits(train, load_split(config, "val"))
    (tmp_path / "train.csv").write_text("path,label\n../a.mp4,walk\n")
    outside = DataConfig(root=str(tmp_path), classes=None, check_files=False, allow_outside_root=True)
    (tmp_path / "val.csv").write_text("path,label\n../c.mp4,walk\n")
    assert load_split(outside, "val").class_names == ["walk"]
    (tmp_path / "val.csv").write_text("path,label\nb.mp4,run\n")
    (tmp_path / "train.csv").unlink()
    assert load_split(config, "val").class_names == ["run"]


LISTS = {
    "k400/vifi_val.txt": ("k400/xclip_kinetics_400_labels.csv", 19877),
    "k400/vifi_train_tiny.txt": ("k400/i3d_label_map.txt", 60000),
    "k400/text4vis_kinetics_video_val_se320.txt": ("mmaction2/kinetics_label_map_k400.txt", 19796),
    "k600/ZS_split1_K600_eval.txt": ("k600/k160_labels_split1.csv", None),
    "k600/ZS_split2_K600_eval.txt": ("k600/k160_labels_split2.csv", None),
    "k600/ZS_split3_K600_eval.txt": ("k600/k160_labels_split3.csv", None),
    "ssv2/vifi_validation.txt": ("ssv2/ila_something-something-v2-labels.csv", 24777),
    "ssv2/vifi_train1_few_shot_16.txt": ("mmaction2/sthv2_label_map.txt", 2784),
    "ucf101/official/trainlist01.txt": ("ucf101/official/classInd.txt", 9537),
    "ucf101/official/testlist01.txt": ("ucf101/official/classInd.txt", 3783),
    "ucf101/vifi_train1_few_shot_2.txt": ("ucf101/xclip_ucf_101_labels.csv", 202),
    "hmdb51/train_rgb_split_1.txt": ("mmaction2/hmdb51_label_map.txt", 3570),
    "hmdb51/vifi_val1.txt": ("hmdb51/xclip_hmdb_51_labels.csv", 1530),
}
needs_labels = pytest.mark.skipif(not SHARED_LABELS.is_dir(), reason="no label files at CLIPVID_SHARED_DATA")


@needs_labels
@pytest.mark.parametrize("name", LISTS)
def test_published_lists_are_read(name: str):
    classes, count = LISTS[name]
    manifest = load_manifest(SHARED_LABELS, name, classes, check_files=False)
    assert count in (None, len(manifest))
    lines = [line.split() for line in (SHARED_LABELS / name).read_text().splitlines() if line.strip()]
    assert [sample.path for sample in manifest.samples] == [line[0] for line in lines]
    if "official" in name:
        folders = [manifest.class_names[sample.label] for sample in manifest.samples]
        assert folders == [line[0].split("/")[0] for line in lines]
    else:
        assert [sample.label for sample in manifest.samples] == [int(line[-1]) for line in lines]


CLASS_LISTS = {
    "mmaction2/kinetics_label_map_k700.txt": (700, "abseiling", "zumba"),
    "mmaction2/kinetics_label_map_k600.txt": (600, "abseiling", "zumba"),
    "mmaction2/jester_label_map.txt": (27, "Swiping Left", "Doing other things"),
    "mmaction2/diving48_label_map.txt": (48, "Back+15som+05Twis+FREE", None),
    "ucf101/official/classInd.txt": (101, "ApplyEyeMakeup", "YoYo"),
    "charades/Charades_v1_classes.txt": (157, "Holding some clothes", None),
    "ssv2/ila_something-something-v2-labels.csv": (174, "Approaching something with your camera", None),
}


@needs_labels
@pytest.mark.parametrize("name", CLASS_LISTS)
def test_published_class_lists_are_read(name: str):
    count, first, last = CLASS_LISTS[name]
    names = [info.name for info in read_classes(SHARED_LABELS / name).classes]
    assert (len(names), names[0]) == (count, first)
    assert last in (None, names[-1])


def test_class_lists_in_json(tmp_path: Path):
    def names(content: object) -> list[str]:
        (tmp_path / "labels.json").write_text(json.dumps(content))
        return [info.name for info in read_classes(tmp_path / "labels.json").classes]

    assert names({"Holding something": "0", "Dropping something": "1"}) == ["Holding something", "Dropping something"]
    assert names([["Back", "15som"], ["Front", "FREE"]]) == ["Back+15som", "Front+FREE"]
    for wrong in ({"a": "x"}, 3, [1]):
        with pytest.raises(ManifestError, match="expected a JSON list"):
            names(wrong)


def test_loader_frames_are_independent_of_source(root: Path):
    manifest = load_manifest(root, "train", None)
    dataset = VideoDataset(manifest, FrameSampling("uniform", 4), eval_transforms(16), seed=0, training=False)
    media = Manifest(
        tuple(Sample(s.path, s.label, media=(root / s.path).read_bytes) for s in manifest.samples),
        manifest.classes, root,
    )  # fmt: skip
    other = VideoDataset(media, FrameSampling("uniform", 4), eval_transforms(16), seed=0, training=False)
    for index in range(4):
        assert (dataset[(0, index)]["frames"].int() - other[(0, index)]["frames"].int()).abs().max() <= 2
    assert torch.equal(dataset[(0, 1)]["frames"], dataset[(7, 1)]["frames"])
