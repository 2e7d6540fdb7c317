"""One folder of videos without a list for validation: drawn split, its list, and the words at the end of the run."""

import csv
import html
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from clipvid import InputError
from clipvid.commands import evaluate, finetune
from clipvid.data.config import DataConfig
from clipvid.data.drawn_split import describe_split, draw_split, without_missing_list, write_split
from clipvid.data.lists.samples import Sample
from clipvid.data.manifest import ClassInfo, Manifest
from clipvid.data.splits import load_split, load_splits
from clipvid.data.synthetic.world import WorldConfig, build_world

WORLD = WorldConfig(
    objects=("ball", "star"), motions=("horizontal",), num_frames=4, image_size=48,
    train_per_class=5, val_per_class=0, test_per_class=0,
)  # fmt: skip


@pytest.fixture
def videos(tmp_path, monkeypatch) -> Path:
    """Return a folder with one folder of five videos for each class, in the working folder."""
    world = build_world(WORLD, tmp_path / "world", progress=False)
    names = {row["id"]: row["name"] for row in csv.DictReader((world / "classes.csv").read_text().splitlines())}
    for row in csv.DictReader((world / "train.csv").read_text().splitlines()):
        target = tmp_path / "videos" / names[row["label"]] / Path(row["path"]).name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(world / row["path"], target)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "videos"


def manifest(labels: list[int], groups: list[str | None]) -> Manifest:
    samples = tuple(
        Sample(f"{place}.mp4", label, group) for place, (label, group) in enumerate(zip(labels, groups, strict=True))
    )
    return Manifest(samples, tuple(ClassInfo(number, f"class {number}") for number in range(3)), Path("root"))


@pytest.mark.parametrize("seed", range(5))
def test_every_class_has_its_share(seed) -> None:
    pool = manifest([0] * 10 + [1] * 20 + [2] * 5, [None] * 35)
    train, val = draw_split(pool, DataConfig(split_seed=seed))
    assert [sum(sample.label == number for sample in val.samples) for number in range(3)] == [2, 4, 1]
    assert sorted((*train.paths(), *val.paths())) == sorted(pool.paths())


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_whole(seed) -> None:
    pool = manifest([number % 3 for number in range(60)], [f"person {number // 6}" for number in range(60)])
    train, val = draw_split(pool, DataConfig(split_seed=seed))
    assert len(val) == 12
    assert not {sample.group for sample in train.samples} & {sample.group for sample in val.samples}


def test_few_groups_stay_whole_and_one_group_is_refused() -> None:
    train, val = draw_split(manifest([0, 1, 2] * 4, ["ann"] * 6 + ["bob"] * 6), DataConfig())
    assert sorted(len({sample.group for sample in own.samples}) for own in (train, val)) == [1, 1]
    with pytest.raises(InputError, match=r"all 12 videos are of one group, 'ann'.*Correct data\.group_pattern"):
        draw_split(manifest([0, 1, 2] * 4, ["ann"] * 12), DataConfig())


def test_a_class_that_training_never_sees_is_warned_of() -> None:
    split = draw_split(manifest([0] * 6 + [1] * 6, ["ann"] * 6 + ["bob"] * 6), DataConfig())
    (unseen,) = {sample.label for sample in split[1].samples}
    assert f"all videos of 'class {unseen}', which training never sees" in describe_split(*split)
    assert "never sees" not in describe_split(
        *draw_split(manifest([0, 1] * 6, ["ann"] * 6 + ["bob"] * 6), DataConfig())
    )


def test_another_seed_draws_other_videos() -> None:
    pool = manifest([0] * 30, [None] * 30)
    drawn = {tuple(draw_split(pool, DataConfig(split_seed=seed))[1].paths()) for seed in range(4)}
    assert len(drawn) == 4


def test_too_few_videos_are_refused() -> None:
    with pytest.raises(InputError, match=r"data\.val is not given, and 1 videos are too few"):
        draw_split(manifest([0], [None]), DataConfig())


@pytest.mark.parametrize("share", [0.0, 0.7, float("nan")])
def test_impossible_shares_are_refused(share) -> None:
    with pytest.raises(InputError, match="val_share"):
        DataConfig(val_share=share)


def test_only_a_default_list_may_be_missing(videos) -> None:
    assert without_missing_list(DataConfig(train="videos")).val is None
    assert without_missing_list(DataConfig(train="videos", val="other.csv")).val == "other.csv"
    assert without_missing_list(DataConfig(train="nowhere")).val == "val.csv"
    Path("val.csv").write_text("path,label\n")
    assert without_missing_list(DataConfig(train="videos")).val == "val.csv"


def test_evaluation_needs_its_list(videos, tiny_folder, capsys) -> None:
    """Otherwise a share of the training videos would be measured without a word."""
    words = ["--model=tiny", "--data.train=videos", "--output_dir=out", "--data.num_workers=0"]
    with pytest.raises(FileNotFoundError, match=r"no list .*val\.csv"):
        evaluate.main(words)


def test_single_splits_equal_both(videos) -> None:
    config = DataConfig(train="videos", val=None)
    both = load_splits(config)
    assert [load_split(config, split).hash for split in ("train", "val")] == [own.hash for own in both]


def test_a_written_split_is_read_back(videos, tmp_path) -> None:
    train, val = load_splits(DataConfig(train="videos", val=None))
    root = write_split(tmp_path / "split.csv", train, val)
    again = load_splits(DataConfig(root=root, train=str(tmp_path / "split.csv"), val=str(tmp_path / "split.csv")))
    for before, after in zip((train, val), again, strict=True):
        assert [before.file(sample).resolve() for sample in before.samples] == [
            after.file(sample).resolve() for sample in after.samples
        ]
        assert [sample.label for sample in before.samples] == [sample.label for sample in after.samples]


def test_one_folder_is_enough(videos, tiny_folder, capsys) -> None:
    words = ["--data.train=videos/", "--output_dir=out", "--training.epochs=2", "--training.report_to=none"]
    small = ["--data.num_workers=0", "--selection.folds=2", "--model.num_frames=2"]
    small += ["--data.sampling=dense", "--data.stride=3", "--data.resize=squash"]
    finetune.main([*words, *small, "--training.per_device_train_batch_size=8"])
    printed = capsys.readouterr().out
    assert "data.val is not given: 4 of 20 videos are held out for it, a share of each class" in printed
    assert re.search(r"On 4 videos that it was not trained on, the model is right in \d+% \(95% interval", printed)
    assert "The most frequent class alone would be right in 25%. In cross-validation" in printed
    rows = csv.DictReader(Path("out/split.csv").read_text().splitlines())
    assert [row["split"] for row in rows] == ["train"] * 16 + ["val"] * 4
    page = html.unescape(Path("out/report.html").read_text())
    assert "On 4 videos that it was not trained on" in page
    command = re.search(r"clipvid evaluate (--model out .*?) adds zero-shot CLIP", page)
    assert command is not None
    evaluate.main([*shlex.split(command[1]), "--output_dir=again", "--data.num_workers=0"])
    assert "was trained on clips sampled as" not in capsys.readouterr().out
    trained, again = (json.loads(Path(folder, "metrics.json").read_text()) for folder in ("out", "again"))
    assert again["top1"] == trained["top1"]
