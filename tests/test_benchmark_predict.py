"""`clipvid benchmark predict` and `timeline`: figures of every row, ratios, bars that are missed."""

import json
import os

import pytest

from clipvid.benchmarks.fresh_process import in_fresh_process
from clipvid.benchmarks.predict import PredictBenchmark, Rates
from clipvid.benchmarks.predict import render_table as render_rates
from clipvid.benchmarks.timeline import TimelineBenchmark, TimelineCost, measure_one
from clipvid.benchmarks.timeline import render_table as render_timelines
from clipvid.commands.benchmark import main
from clipvid.data.synthetic.world import WorldConfig, build_world

WORLD = WorldConfig(
    objects=("ball",), motions=("horizontal",), num_frames=20, image_size=48,
    train_per_class=2, val_per_class=0, test_per_class=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return build_world(WORLD, tmp_path_factory.mktemp("world"), progress=False)


def test_every_rate_is_measured(clip_folder, videos, tmp_path) -> None:
    config = {"backbone": f"local-dir:{clip_folder}", "videos": str(videos), "num_frames": 2, "batch_size": 2}
    (tmp_path / "in.json").write_text(json.dumps(config | {"passes": 2, "repeats": 2, "memory": False}))
    main(["predict", "--config", str(tmp_path / "in.json"), f"--output_dir={tmp_path / 'run'}", "--num_workers=1"])
    (row,) = json.loads((tmp_path / "run" / "metrics.json").read_text())["rows"]
    assert all(len(row[name]) == 2 and min(row[name]) > 0 for name in ("stream", "reader", "model", "single"))
    assert row["memory"] is None


def test_ratio_is_taken_in_each_repeat() -> None:
    rates = Rates([9.0, 20.0, 8.0], [10.0, 100.0, 10.0], [100.0, 20.0, 20.0], [1.0] * 3, 0.5)
    assert rates.ratio == 0.9
    table = render_rates([rates], PredictBenchmark(repeats=3))
    assert "| stream / smaller of reader and model | 0.90 (≥ 0.9) |" in table
    assert "| GB above the model: 3840x2160, 32 frames, 4 views | 0.50 (≤ 0.4) ✗ |" in table


@pytest.mark.slow
def test_timeline_is_measured_in_a_fresh_process(clip_folder, videos) -> None:
    path = str(next(videos.rglob("*.mp4")))
    config = TimelineBenchmark(backbone=f"local-dir:{clip_folder}", num_frames=2, window=0.2, hop=0.1, threads=1)
    seconds, first, memory, decoding, points = in_fresh_process(measure_one, config, "none", path)
    assert seconds > first > 0
    assert memory >= 0
    assert decoding > 0
    assert points > 2
    assert in_fresh_process(os.getpid) != os.getpid()


def test_bars_hold_for_the_standard_options_only() -> None:
    rows = [
        TimelineCost("none", [2.0, 4.0, 2.5], [0.1] * 3, [50.0] * 3, [1.0] * 3, 179),
        TimelineCost("ila", [9.0] * 3, [0.1] * 3, [50.0] * 3, [1.0] * 3, 179),
    ]
    table = render_timelines(rows, TimelineBenchmark())
    assert "| none | 2.50 (≤ 3) | 0.1 | 50 | 1 |" in table
    assert "| ila | 9.00 (≤ 8) ✗ |" in table
    assert "| none | 2.50 | 0.1 |" in render_timelines(rows, TimelineBenchmark(hop=0.5))
