"""`clipvid benchmark inspect`: planted labels and copies are counted rightly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from clipvid import InputError
from clipvid.benchmarks.inspect import InspectBenchmark, wrong_label_precision
from clipvid.benchmarks.planted_copies import CHANGES, write_copy
from clipvid.commands import run
from clipvid.data.reader import open_video
from clipvid.data.synthetic.encoding import write_video
from clipvid.inspection.tasks import ProbeTask


def task(noise: float) -> ProbeTask:
    """Return clips of four classes with one feature each."""
    labels = torch.arange(4).repeat(25)
    rng = torch.Generator().manual_seed(0)
    features = torch.nn.functional.one_hot(labels, 8).float()[:, None].repeat(1, 4, 1)
    features = features + noise * torch.randn(features.shape, generator=rng)
    groups = torch.arange(100)
    return ProbeTask(list(range(100)), features, labels, groups % 5, groups, 4, "clip")


def test_precision_of_planted_labels_follows_the_features() -> None:
    assert wrong_label_precision(task(0.1), 0.05, seed=0) == 1.0
    assert wrong_label_precision(task(100.0), 0.05, seed=0) < 0.7  # noise: little better than a draw


@pytest.mark.parametrize("kind", CHANGES)
def test_planted_copy_is_what_its_name_says(kind: str, tmp_path: Path) -> None:
    frames = torch.randint(0, 255, (20, 8, 8, 3), generator=torch.Generator().manual_seed(0)).byte()
    frames = frames.repeat_interleave(8, 1).repeat_interleave(8, 2)
    write_video(tmp_path / "clip.mp4", frames.numpy(), 10)
    write_copy(tmp_path / "clip.mp4", tmp_path / "copies/copy.mp4", kind)
    with open_video(tmp_path / "clip.mp4") as source, open_video(tmp_path / "copies/copy.mp4") as copy:
        first, other = source.read([10]).float(), copy.read([10 if len(copy) == 20 else 7]).float()
        assert len(copy) == (14 if kind == "trimmed" else 20)
    height, width = {"resized": (44, 44), "letterboxed": (80, 64)}.get(kind, (64, 64))
    assert other.shape == (1, height, width, 3)
    if kind == "letterboxed":
        assert other[:, :6].max() < 30
        other = other[:, 8:72]
    if kind != "resized":
        expected = first.flip(2) if kind == "mirrored" else first
        assert (other - expected).abs().mean() < (0.1 if kind == "copied" else 25)
        assert (other - first).abs().mean() > 30 or kind != "mirrored"


def test_options_without_sense_are_refused() -> None:
    for options in ({"copies": 0}, {"clips_per_class": 2}, {"wrong_labels": 0.7}, {"seeds": 0}):
        with pytest.raises(InputError):
            InspectBenchmark(**options)


@pytest.mark.slow
def test_benchmark_meets_its_bars_on_a_small_world(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CLIPVID_CACHE", str(tmp_path / "cache"))
    run("benchmark", ["inspect", f"--output_dir={tmp_path}", "--clips_per_class=5", "--copies=12", "--seeds=1"])
    rows = json.loads((tmp_path / "metrics.json").read_text())["rows"]
    figures = {(row["data"], row["measure"]): row["value"] for row in rows}
    assert figures["motions of the world", "needs"] == "order"
    assert figures["objects of the world", "needs"] in ("frames", "one frame")
    assert float(figures["12 copies among 200 clips", "recall"]) >= 0.9
    assert float(figures["12 copies among 200 clips", "precision"]) >= 0.9
    assert float(figures["motions of the world", "wrong labels, precision"]) >= 0.6
    assert (tmp_path / "table.md").is_file()
