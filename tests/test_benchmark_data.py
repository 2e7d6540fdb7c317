"""Benchmark of reading videos: the compared work is the same. Figures are not asserted."""

import json
from pathlib import Path

import pytest
from test_loader import grey_video

from clipvid.benchmarks import data as benchmark_data


def options(tmp_path: Path, *more: str) -> list[str]:
    (tmp_path / "videos").mkdir()
    for i in range(4):
        grey_video(tmp_path / "videos" / f"{i}.mp4", 12)
    small = ["--num_frames=4", "--image_size=16", "--batch_size=2", "--repeats=1"]
    return [f"--output_dir={tmp_path}/out", f"--videos={tmp_path}/videos", *small, *more]


@pytest.mark.filterwarnings("ignore:This process")
def test_loader_and_plain_loop_do_the_same_work(tmp_path: Path, capsys):
    benchmark_data.main(options(tmp_path, "--lines=0", "--processes=2"))
    figures = json.loads((tmp_path / "out/metrics.json").read_text())
    rows = {row["name"]: row for row in figures["rows"]}
    assert list(rows) == [
        "training, 1 process, first epoch",
        "training, 1 process",
        "training, 2 processes",
        "4 x 3 views",
    ]
    for row in rows.values():
        assert row["ratio"] == pytest.approx(row["plain"] / row["ours"])
    assert (tmp_path / "out/table.md").read_text().count("|") > 20
    assert "4 x 3 views" in capsys.readouterr().out


@pytest.mark.slow
def test_manifest_is_read_from_csv_then_cache(tmp_path: Path):
    figures = benchmark_data.measure_manifest(tmp_path, 600_000)
    assert figures["lines"] == 600_000
    assert len(list((tmp_path / "cache/manifests").glob("*.arrow"))) == 1
