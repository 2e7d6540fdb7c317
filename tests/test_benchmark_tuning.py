"""`clipvid benchmark tuning`: figures match the steps, and missed targets are marked."""

import json
import statistics

import pytest
from conftest import clip_config, write_clip

from clipvid import InputError
from clipvid.benchmarks.tuning import ROWS, TuningBenchmark
from clipvid.commands.benchmark import main


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> tuple[dict, str]:
    output = tmp_path_factory.mktemp("tuning")
    clip_folder = write_clip(output / "clip", clip_config({"layers": 4}))  # in the last block, patches skip the MLP
    rows = ROWS | {
        "head": {"tune": ["head"], "time": 0.0},
        "partial, 4 blocks": {"tune": [{"name": "partial"}, "head"]},
    }
    inputs = {"backbone": f"local-dir:{clip_folder}", "pretrained": None, "num_frames": 3, "repeats": 1, "rows": rows}
    (output / "in.yaml").write_text(json.dumps(inputs))
    main(["tuning", "--config", str(output / "in.yaml"), f"--output_dir={output / 'run'}"])
    return json.loads((output / "run" / "metrics.json").read_text()), (output / "run" / "table.md").read_text()


def test_every_row_is_measured_against_full_tuning(report):
    metrics, table = report
    rows = {row["name"]: row for row in metrics["rows"]}
    assert list(rows) == list(ROWS)
    assert [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")][1:] == list(ROWS)
    full = rows["full"]
    assert full["time_ratio"] == full["memory_ratio"] == 1
    for row in rows.values():
        assert row["time_ratio"] == statistics.median(row["seconds"]) / statistics.median(full["seconds"])
        assert row["memory_ratio"] == row["peak_memory"] / full["peak_memory"]
    assert rows["full"]["trained_parameters"] > rows["lora"]["trained_parameters"] > rows["head"]["trained_parameters"]


def test_activations_below_trained_parts_are_not_kept(report):
    peak = {row["name"]: row["peak_memory"] for row in report[0]["rows"]}
    assert peak["head"] < peak["adapters in the upper half"] < peak["adapters in all blocks"] < peak["full"]


def test_missed_bars_are_marked(report):
    line = next(line for line in report[1].splitlines() if line.startswith("| head"))
    assert "> 0 ✗" in line


def test_missing_full_tuning_row_is_refused():
    with pytest.raises(ValueError, match="rows: 'full', the reference of the others, is missing"):
        TuningBenchmark(rows={"head": {"tune": ["head"]}})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{tune: [head], time: '0.5'}", "row 'x': time='0.5': expected a valid number"),
        ("{tune: [{name: partial, blocks: '4'}, head]}", "blocks='4': expected a valid integer"),
    ],
)
def test_quoted_numbers_are_refused_before_anything_is_written(row: str, message: str, tmp_path):
    (tmp_path / "in.yaml").write_text(f"rows: {{full: {{tune: [full]}}, x: {row}}}\noutput_dir: {tmp_path / 'run'}\n")
    with pytest.raises(InputError, match=message):
        main(["tuning", "--config", str(tmp_path / "in.yaml")])
    assert not (tmp_path / "run").exists()
