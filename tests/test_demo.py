"""Demo from command to report, on a small world."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

ROOT = Path(__file__).parent.parent
ROWS = [
    "zero-shot CLIP",
    "mean pooling, fine-tuned",
    "ILA, fine-tuned",
    "ILA on reversed clips",
    "ILA on shuffled clips",
]


def smaller(name: str, folder: Path) -> Path:
    """Return one of the demo's configs with less training data."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "configs" / name).read_text())
    config["output_dir"] = str(folder / Path(config["output_dir"]).name)
    config["data"]["root"] = str(folder / "world")
    config["data"]["world"] |= {"objects": ["ball", "star"], "motions": ["horizontal"]}
    config["data"]["world"] |= {"train_per_class": 6, "test_per_class": 2}
    config["training"] |= {"epochs": 1, "per_device_train_batch_size": 12}
    path = folder / name
    path.write_text(yaml.safe_dump(config))
    return path


def demo(folder: Path) -> str:
    names = {"adapter": "demo.yaml", "baseline": "demo_mean_pooling.yaml"}
    words = [f"--{option}={smaller(name, folder)}" for option, name in names.items()]
    command = [sys.executable, "scripts/demo.py", *words, f"--output_dir={folder / 'demo'}"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"}, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_demo_writes_report_and_reuses_results(tmp_path: Path) -> None:
    said = demo(tmp_path)
    metrics = json.loads((tmp_path / "demo/metrics.json").read_text())
    assert list(metrics) == ROWS
    assert all(name in said for name in ROWS)
    assert all(figures["top1"]["count"] == 8 and "pairs" in figures for figures in metrics.values())
    page = (tmp_path / "demo/report.html").read_text()
    assert all(name in page for name in ROWS)
    assert (tmp_path / "demo/clips.png").stat().st_size > 1000
    answers = pq.read_table(tmp_path / "ila/evaluation/predictions.parquet")
    trained = [tmp_path / name / "predictions.json" for name in ("ila", "mean_pooling")]
    times = [path.stat().st_mtime_ns for path in trained]
    assert set(re.findall(r"all, (\S+): 8 videos", said)) == {"forward", "reversed", "shuffled", "zero-shot"}
    assert not re.findall(r"all, (\S+): 8 videos", demo(tmp_path))
    assert [path.stat().st_mtime_ns for path in trained] == times
    assert pq.read_table(tmp_path / "ila/evaluation/predictions.parquet").equals(answers)
    assert json.loads((tmp_path / "demo/metrics.json").read_text()) == metrics
