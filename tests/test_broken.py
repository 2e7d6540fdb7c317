"""Unreadable videos: replaced in training by a keyed rule, wrong in evaluation, and always logged."""

import json
from pathlib import Path

import pytest
import torch
from processes import finetune as finetune_process
from test_loader import grey_video

from clipvid.commands import finetune
from clipvid.data import precheck
from clipvid.data.broken import BadVideos, Failure, TooManyBadVideos
from clipvid.data.lists.samples import Stored
from clipvid.data.loader import EvalBatches, TrainBatches, VideoDataset, build_loader
from clipvid.data.manifest import ClassInfo, Manifest, Sample
from clipvid.data.precheck import open_videos, places_to_open
from clipvid.data.sampling import FrameSampling
from clipvid.data.synthetic.world import WorldConfig, build_world
from clipvid.data.transforms import eval_transforms, train_transform
from clipvid.runs.progress import Remaining

NUM_VIDEOS, BROKEN = 12, {2: b"not a video", 7: b"", 9: None}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    root = tmp_path_factory.mktemp("broken")
    for video in range(NUM_VIDEOS):
        if video not in BROKEN:
            grey_video(root / f"{video}.mp4", frames=6)
        elif BROKEN[video] is not None:
            (root / f"{video}.mp4").write_bytes(BROKEN[video])
    samples = tuple(Sample(f"{video}.mp4", video % 2) for video in range(NUM_VIDEOS))
    return Manifest(samples, (ClassInfo(0, "even"), ClassInfo(1, "odd")), root)


def training_batches(manifest: Manifest, num_workers: int, bad: BadVideos | None = None, epochs: int = 2) -> list[dict]:
    dataset = VideoDataset(manifest, FrameSampling("uniform", 3), train_transform(16), seed=5, training=True)
    loader = build_loader(dataset, TrainBatches(NUM_VIDEOS, 4, seed=5), num_workers, bad)
    return [batch for _ in range(epochs) for batch in loader]


def test_training_shows_other_videos_by_a_rule(manifest: Manifest):
    asked = [index for _ in range(2) for batch in [*TrainBatches(NUM_VIDEOS, 4, seed=5)] for _, index in batch]
    runs = [training_batches(manifest, num_workers) for num_workers in (0, 2)]
    for first, second in zip(*runs, strict=True):
        assert first.keys() == second.keys() == {"frames", "label", "index", "epoch", "readable"}
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert first["readable"].all()
        assert torch.equal(first["label"], first["index"] % 2)
        assert not set(first["index"].tolist()) & BROKEN.keys()
    shown = [index for batch in runs[0][:3] for index in batch["index"].tolist()]
    kept = [(a, b) for a, b in zip(asked[:NUM_VIDEOS], shown, strict=True) if a not in BROKEN]
    assert len(kept) == NUM_VIDEOS - len(BROKEN)
    assert all(a == b for a, b in kept)


def test_each_bad_video_is_logged_once(manifest: Manifest, tmp_path: Path, capsys):
    file = tmp_path / "run" / "bad_videos.jsonl"
    for _ in range(2):
        bad = BadVideos("train", NUM_VIDEOS, 0.5, file)
        training_batches(manifest, 1, bad)
        assert set(bad.reasons) == {"2.mp4", "7.mp4", "9.mp4"}
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 3
        assert any(line.startswith("bad video in train: 9.mp4: no such file") for line in lines)
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    assert sorted(entry["path"] for entry in entries) == ["2.mp4", "7.mp4", "9.mp4"]
    assert all(entry["split"] == "train" and entry["reason"] for entry in entries)


def test_truncated_log_line_is_skipped(tmp_path: Path):
    file = tmp_path / "bad_videos.jsonl"
    file.write_text('{"split": "train", "path": "a.mp4", "reason": "x"}\n{"split": "train", "pa')
    BadVideos("train", 9, file=file).add([Failure("a.mp4", "x"), Failure("b.mp4", "y")])
    lines = file.read_text().splitlines()
    assert [json.loads(line)["path"] for line in (lines[0], lines[2])] == ["a.mp4", "b.mp4"]


@pytest.mark.parametrize("name", ["a.mp4", "é 山.mp4", "\udc80.mp4", "a\nb.mp4"])
def test_record_keeps_the_letters_of_names(name: str, tmp_path: Path):
    for _ in range(2):
        BadVideos("train", 9, file=tmp_path / "bad.jsonl").add([Failure(name, "x")])
    (line,) = (tmp_path / "bad.jsonl").read_bytes().splitlines()
    assert json.loads(line)["path"] == name
    assert ("é 山".encode() in line) == name.startswith("é")


def test_run_stops_past_the_bad_video_limit(manifest: Manifest, tmp_path: Path):
    limited = BadVideos("train", NUM_VIDEOS - 1, 0.1, tmp_path / "bad.jsonl")
    with pytest.raises(TooManyBadVideos, match=r"(?s)3 of 11 videos in train.*check-videos") as caught:
        training_batches(manifest, 0, limited)
    assert all(name in str(caught.value) for name in ("2.mp4", "7.mp4", "9.mp4"))
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 3
    training_batches(manifest, 0, BadVideos("train", NUM_VIDEOS, 3 / NUM_VIDEOS))


def test_zero_limit_and_long_lists():
    bad = BadVideos("train", 1000, 0.0)
    with pytest.raises(TooManyBadVideos, match=r"and 10 more"):
        bad.add(Failure(f"{i}.mp4", "cut off") for i in range(30))
    bad.add([Failure("3.mp4", "cut off")])


def test_only_broken_videos_is_an_error(manifest: Manifest):
    with pytest.raises(ValueError, match=r"100 videos in a row .*check-videos"):
        training_batches(manifest.subset([2] * 4), 0)


def test_evaluation_does_not_replace_bad_videos(manifest: Manifest):
    dataset = VideoDataset(manifest, FrameSampling("uniform", 3), eval_transforms(16), seed=0, training=False, clips=2)
    bad = BadVideos("val", NUM_VIDEOS)
    batches = list(build_loader(dataset, EvalBatches(NUM_VIDEOS, 5), 1, bad))
    index, readable = (torch.cat([batch[key] for batch in batches]) for key in ("index", "readable"))
    assert index.tolist() == list(range(NUM_VIDEOS))
    assert {i for i, good in enumerate(readable.tolist()) if not good} == BROKEN.keys()
    frames = torch.cat([batch["frames"] for batch in batches])
    assert frames.shape == (NUM_VIDEOS, 2, 3, 3, 16, 16)
    assert frames.flatten(1).any(dim=1).tolist() == readable.tolist()
    assert set(bad.reasons) == {"2.mp4", "7.mp4", "9.mp4"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a world with one damaged video in training and one in evaluation."""
    config = WorldConfig(
        objects=("ball", "star"), motions=("horizontal",), num_frames=4, image_size=32,
        train_per_class=4, val_per_class=2, test_per_class=0,
    )  # fmt: skip
    root = build_world(config, tmp_path_factory.mktemp("world"), progress=False)
    for split in ("train", "val"):
        first = (root / f"{split}.csv").read_text().splitlines()[1].split(",")[0]
        (root / first).write_bytes(b"damaged")
    return root


def arguments(world: Path, output: Path, *more: str) -> list[str]:
    options = {
        "data.root": world, "output_dir": output, "model.backbone": "tiny", "model.adapter": "none",
        "model.num_frames": 2, "model.tune": "[head]", "model.head": "linear", "training.epochs": 1,
        "training.per_device_train_batch_size": 8, "training.report_to": "none", "data.num_workers": 1,
    }  # fmt: skip
    return [f"--{key}={value}" for key, value in options.items()] + list(more)


@pytest.mark.parametrize("opened", [1000, 0], ids=["found before", "found on the way"])
def test_run_counts_bad_videos_as_wrong(world: Path, tmp_path: Path, capsys, opened: int):
    finetune.main(arguments(world, tmp_path, "--data.max_bad_fraction=0.1", f"--data.check_videos={opened}"))
    figures = json.loads((tmp_path / "metrics.json").read_text())
    assert (figures["unreadable"], figures["top1"]["count"]) == (1, 8)
    said = capsys.readouterr()
    assert "1 unreadable, counted as wrong" in said.out
    assert "not readable: 1 of 16 videos in train and 1 of 8 videos in val. In training others took" in said.out
    assert said.err.count("bad video in ") == 2
    assert said.err.index("bad video in train") < said.err.index("step ")
    sessions = json.loads((tmp_path / "run.json").read_text())["sessions"]
    assert sessions[-1]["unreadable"] == {"train": 1, "val": 1}
    scores = torch.tensor(json.loads((tmp_path / "predictions.json").read_text())["scores"])
    assert [int(row.sum().round()) for row in scores] == [0] + [1] * 7
    entries = [json.loads(line) for line in (tmp_path / "bad_videos.jsonl").read_text().splitlines()]
    assert sorted(entry["split"] for entry in entries) == ["train", "val"]


def test_run_with_too_many_bad_videos_lists_them(world: Path, tmp_path: Path):
    output = tmp_path / "run"
    worker = finetune_process(arguments(world, output, "--data.max_bad_fraction=0"), tmp_path / "log")
    assert worker.ended() == 1
    assert "Traceback" not in worker.said
    assert "1 of 16 videos in train cannot be read, more than data.max_bad_fraction allows (0)" in worker.said
    assert "step " not in worker.said
    assert not output.exists()


def test_a_run_without_bad_videos_says_nothing_of_them(world: Path, tmp_path: Path, capsys):
    for split in ("train", "val"):
        lines = (world / f"{split}.csv").read_text().splitlines()
        (world / f"good_{split}.csv").write_text("\n".join([lines[0], *lines[2:]]))
    finetune.main(arguments(world, tmp_path, "--data.train=good_train.csv", "--data.val=good_val.csv"))
    said = capsys.readouterr()
    assert "not readable" not in said.out + said.err
    assert json.loads((tmp_path / "run.json").read_text())["sessions"][-1]["unreadable"] == {"train": 0, "val": 0}
    assert not (tmp_path / "bad_videos.jsonl").exists()


KINDS = ["no video", "empty", "missing", "cut off", "folder without images", "broken image", "part after the end"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_broken_video_is_found_before_training(kind: str, tmp_path: Path):
    grey_video(tmp_path / "good.mp4", frames=6)
    path = tmp_path / "bad.mp4"
    if kind == "no video":
        path.write_bytes(b"not a video")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut off":
        path.write_bytes((tmp_path / "good.mp4").read_bytes()[:600])
    elif kind == "part after the end":
        grey_video(path, frames=6)
    elif kind != "missing":
        path.mkdir()
        (path / "1.png").write_bytes(b"no image" if kind == "broken image" else b"")
        if kind == "folder without images":
            (path / "1.png").rename(path / "1.txt")
    samples = (Sample("good.mp4", 0), Sample("bad.mp4", 0, start=9.0 if kind == "part after the end" else None))
    good, bad = open_videos(Manifest(samples, (ClassInfo(0, "x"),), tmp_path), [0, 1], 2)
    assert good is None
    assert bad.path == "bad.mp4"
    assert bad.reason


def test_opened_videos_are_spread_over_large_sets():
    assert places_to_open(100, 5) == [0, 20, 40, 60, 80]
    assert places_to_open(100, 0) == []
    assert places_to_open(3, 1000) == [0, 1, 2]
    assert places_to_open(4, 1000, {1, 2}) == [0, 3]
    assert places_to_open(100, 5, {0, 20, 40}) == [1, 51]
    assert places_to_open(100, 5, set(range(50))) == []


def test_remote_videos_are_not_opened(tmp_path: Path):
    remote = Sample("a.mp4", 0, media=Stored("https://example.org/a.mp4"))
    assert list(open_videos(Manifest((remote,), (ClassInfo(0, "x"),), tmp_path), [0], 1)) == [None]


def test_folds_open_each_video_once(world: Path, tmp_path: Path, monkeypatch, capsys):
    opened, show = [], []
    failure = precheck._failure
    monkeypatch.setattr(
        precheck, "_failure", lambda videos, place: opened.append(videos.samples[place].path) or failure(videos, place)
    )
    monkeypatch.setattr(Remaining, "__call__", lambda self, done, total: show.append((self.unit, done, total)))
    words = ["--data.protocol=leave_one_group_out", "--data.group_pattern=(train|val)/"]
    finetune.main(arguments(world, tmp_path / "run", *words, "--data.max_bad_fraction=0.5"))
    assert len(opened) == len(set(opened)) == 24
    assert show[-1][0].startswith("videos opened in ")
    assert capsys.readouterr().err.count("bad video in ") == 4  # two in each fold


@pytest.mark.parametrize(
    ("total", "fraction", "allowed"),
    [(37, 0.01, 3), (12, 0.01, 3), (11, 0.01, 2), (4, 0.01, 1), (3, 0.01, 0), (1000, 0.01, 10), (37, 0.0, 0)],
)
def test_small_sets_may_lose_a_few_videos(total: int, fraction: float, allowed: int):
    bad = BadVideos("train", total, fraction)
    bad.add([Failure(f"{i}.mp4", "x") for i in range(allowed)])
    with pytest.raises(TooManyBadVideos):
        bad.add([Failure("one more.mp4", "x")])
