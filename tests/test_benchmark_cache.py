"""`clipvid benchmark cache`: ratios of its seconds, bars that say what is missed."""

import json
import os
import statistics

from clipvid.benchmarks.cache import ROWS, CacheBenchmark, EpochTimes, render_table
from clipvid.commands.benchmark import main


def test_every_row_is_measured_and_leaves_no_features_behind(clip_folder, tmp_path) -> None:
    folder = os.environ["CLIPVID_CACHE"]
    before = set(os.listdir(folder))
    rows = {"head": {"adapter": "none", "tune": ["head"]}}
    inputs = {"backbone": f"local-dir:{clip_folder}", "pretrained": None, "num_frames": 2, "rows": rows}
    inputs |= {"clips": 4, "batch_size": 2, "repeats": 1}
    (tmp_path / "in.yaml").write_text(json.dumps(inputs))
    main(["cache", "--config", str(tmp_path / "in.yaml"), f"--output_dir={tmp_path / 'run'}"])
    (row,) = json.loads((tmp_path / "run" / "metrics.json").read_text())["rows"]
    assert row["bytes_per_clip"] >= 2 * 32 * 4  # two frames of 32 float32 numbers
    assert all(len(row[kind]) == 1 and row[kind][0] > 0 for kind in ("without", "first", "later"))
    assert os.environ["CLIPVID_CACHE"] == folder
    assert set(os.listdir(folder)) == before


def test_ratios_are_of_medians_and_missed_bars_are_marked() -> None:
    slow = EpochTimes("linear head", [10.0, 8.0, 9.0], [10.0, 9.0, 30.0], [1.0, 0.5, 0.9], 2048)
    assert slow.first_ratio == statistics.median(slow.first) / 9
    assert slow.speedup == 10
    quick = EpochTimes("st_adapter, last 2 blocks", [9.0], [9.0], [3.0], 2048)
    table = render_table([slow, quick], CacheBenchmark(rows=ROWS))
    assert "| linear head | 10.00 (≥ 30) ✗ | 1.11 (≤ 1.05) ✗ |" in table
    assert "| st_adapter, last 2 blocks | 3.00 (≥ 2.2) | 1.00 (≤ 1.05) |" in table
