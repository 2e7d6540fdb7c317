"""Downloads of public data sets in their published form, converted to manifests."""

import csv
import json
import os
from pathlib import Path

import pytest

from clipvid.commands import prepare
from clipvid.data.lists.public_datasets import read_public_dataset
from clipvid.data.manifest import load_manifest

SHARED_LABELS = Path(os.environ.get("CLIPVID_SHARED_DATA", Path(__file__).parents[1] / "../shared/data")) / "labels"


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"video")


def write(root: Path, files: dict[str, object]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content if isinstance(content, str) else json.dumps(content))


def kinetics(root: Path) -> None:
    header = "label,youtube_id,time_start,time_end,split,is_cc\n"
    write(
        root / "annotations",
        {
            "train.csv": header
            + "zumba,-aB_0,3,13,train,0\nair drumming,bbb,100,110,train,0\nzumba,gone,1,11,train,0\n",
            "val.csv": header + '"playing, loudly",ccc,0,10,validate,0\n',
            "test.csv": "youtube_id,time_start,time_end,split\nddd,0,10,test\n",
        },
    )
    touch(root, "train/zumba/-aB_0_000003_000013.mp4", "train/bbb_000100_000110.mkv", "val/ccc.mp4")


def something(root: Path) -> None:
    rows = [{"id": "7", "label": "holding a ball", "template": "Holding [something]", "placeholders": ["a ball"]}]
    write(
        root / "labels",
        {
            "labels.json": {"Dropping something": "1", "Holding something": "0"},
            "train.json": rows,
            "validation.json": [{"id": "12", "template": "Dropping [something]"}],
            "test.json": [{"id": "99"}],
        },
    )
    touch(root, "20bn-something-something-v2/7.webm", "20bn-something-something-v2/12.webm")


def ucf(root: Path) -> None:
    write(
        root / "ucfTrainTestlist",
        {
            "classInd.txt": "1 Archery\r\n2 YoYo\r\n",
            "trainlist01.txt": "Archery/v_Archery_g08_c01.avi 1\r\nYoYo/v_YoYo_g08_c01.avi 2\r\n",
            "testlist01.txt": "YoYo/v_YoYo_g01_c01.avi\r\n",
            "trainlist02.txt": "YoYo/v_YoYo_g01_c01.avi 2\r\n",
            "testlist02.txt": "YoYo/v_YoYo_g08_c01.avi\r\n",
        },
    )
    names = ("Archery/v_Archery_g08_c01.avi", "YoYo/v_YoYo_g08_c01.mp4", "YoYo/v_YoYo_g01_c01.avi")
    touch(root, *(f"UCF-101/{name}" for name in names))


def hmdb(root: Path) -> None:
    write(
        root / "testTrainMulti_7030_splits",
        {
            "brush_hair_test_split1.txt": "#20_a_b.c_0.avi 1 \ntwo.avi 2 \nthree.avi 0 \n",
            "wave_test_split1.txt": "four.avi 2 \n",
        },
    )
    touch(root, *(f"brush_hair/{name}.avi" for name in ("#20_a_b.c_0", "two", "three")), "wave/four.avi")


def diving(root: Path) -> None:
    write(
        root,
        {
            "Diving48_vocab.json": [["Back", "15som", "05Twis", "FREE"], ["Front", "25som", "NoTwis", "PIKE"]],
            "Diving48_V2_train.json": [{"vid_name": "a_00", "label": 1, "start_frame": 0, "end_frame": 9}],
            "Diving48_V2_test.json": [{"vid_name": "b_00", "label": 0, "start_frame": 0, "end_frame": 9}],
        },
    )
    touch(root, "rgb/a_00.mp4", "rgb/b_00.mp4")


def jester(root: Path) -> None:
    write(
        root,
        {
            "jester-v1-labels.csv": "Swiping Left\nNo gesture\n",
            "jester-v1-train.csv": "34;No gesture\n",
            "jester-v1-validation.csv": "9;Swiping Left\n",
            "jester-v1-test.csv": "4\n",
        },
    )
    touch(root, "20bn-jester-v1/34/00001.jpg", "20bn-jester-v1/34/00002.jpg", "20bn-jester-v1/9/00001.jpg")


CASES = {
    "k400": (
        kinetics,
        ["air drumming", "playing, loudly", "zumba"],
        [("train/zumba/-aB_0_000003_000013.mp4", 2), ("train/bbb_000100_000110.mkv", 0)],
        [("val/ccc.mp4", 1)],
        ["gone_000001_000011"],
    ),
    "ssv2": (
        something,
        ["Holding something", "Dropping something"],
        [("20bn-something-something-v2/7.webm", 0)],
        [("20bn-something-something-v2/12.webm", 1)],
        [],
    ),
    "ucf101": (
        ucf,
        ["Archery", "YoYo"],
        [("UCF-101/Archery/v_Archery_g08_c01.avi", 0), ("UCF-101/YoYo/v_YoYo_g08_c01.mp4", 1)],
        [("UCF-101/YoYo/v_YoYo_g01_c01.avi", 1)],
        [],
    ),
    "hmdb51": (
        hmdb,
        ["brush hair", "wave"],
        [("brush_hair/#20_a_b.c_0.avi", 0)],
        [("brush_hair/two.avi", 0), ("wave/four.avi", 1)],
        [],
    ),
    "diving48": (
        diving,
        ["Back+15som+05Twis+FREE", "Front+25som+NoTwis+PIKE"],
        [("rgb/a_00.mp4", 1)],
        [("rgb/b_00.mp4", 0)],
        [],
    ),
    "jester": (jester, ["Swiping Left", "No gesture"], [("20bn-jester-v1/34", 1)], [("20bn-jester-v1/9", 0)], []),
}


@pytest.mark.parametrize("dataset", CASES)
def test_prepare_writes_manifests(dataset: str, tmp_path: Path, capsys):
    arrange, classes, train, val, missing = CASES[dataset]
    arrange(tmp_path)
    prepare.main([dataset, "--root", str(tmp_path)])
    for split, expected in (("train", train), ("val", val)):
        manifest = load_manifest(tmp_path, f"clipvid/{split}.csv", "clipvid/classes.csv")
        assert manifest.class_names == classes
        assert [(sample.path, sample.label) for sample in manifest.samples] == expected
    assert (tmp_path / "clipvid/missing.txt").read_text().split() == missing
    assert f"train: {len(train)} of {len(train) + len(missing)} videos" in capsys.readouterr().out


def test_other_splits_and_places(tmp_path: Path):
    ucf(tmp_path)
    (tmp_path / "ucfTrainTestlist").rename(tmp_path.parent / "lists")
    out = tmp_path.parent / "out"
    options = ["--annotations", str(tmp_path.parent / "lists"), "--split", "2", "--output_dir", str(out)]
    prepare.main(["ucf101", "--root", str(tmp_path), *options])
    with (out / "train.csv").open() as file:
        assert list(csv.DictReader(file)) == [{"path": "UCF-101/YoYo/v_YoYo_g01_c01.avi", "label": "YoYo"}]


@pytest.mark.parametrize(
    ("dataset", "files", "message"),
    [
        ("ucf101", {}, "no classInd.txt in or below"),
        (
            "ucf101",
            {"classInd.txt": "1 A\n", "trainlist01.txt": "B/v.avi 1\n", "testlist01.txt": ""},
            "not classes of ucf101",
        ),
        ("k600", {"train.csv": "a,b\n1,2\n"}, "columns label and youtube_id"),
        ("ssv2", {"labels.json": {"A": "0"}, "train.json": [{"id": 1}], "validation.json": []}, "not as published"),
        ("hmdb51", {"a_test_split1.txt": "v.avi 1\n"}, "none of the videos of hmdb51"),
        ("imagenet", {}, "dataset='imagenet' is not one of k400"),
    ],
)
def test_prepare_refuses_other_folders(dataset: str, files: dict, message: str, tmp_path: Path):
    write(tmp_path, files)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        prepare.main([dataset, "--root", str(tmp_path)])


@pytest.mark.skipif(not SHARED_LABELS.is_dir(), reason="no label files at CLIPVID_SHARED_DATA")
@pytest.mark.parametrize(("dataset", "folder"), [("ucf101", "ucf101/official"), ("hmdb51", "hmdb51/official")])
@pytest.mark.parametrize("split", [1, 2, 3])
def test_published_splits(dataset: str, folder: str, split: int):
    actual = read_public_dataset(dataset, SHARED_LABELS / folder, split)
    counts = {part: len(rows) for part, rows in actual.splits.items()}
    expected = {
        "ucf101": [(9537, 3783), (9586, 3734), (9624, 3696)],
        "hmdb51": [(3570, 1530), (3570, 1530), (3570, 1530)],
    }[dataset][split - 1]
    assert (counts["train"], counts["val"]) == expected
    assert len(actual.classes) == {"ucf101": 101, "hmdb51": 51}[dataset]
