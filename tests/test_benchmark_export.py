"""`clipvid benchmark export`: every runtime is measured, ratios are taken round by round."""

import json

import pytest

from clipvid import InputError
from clipvid.benchmarks.export import ExportBenchmark, ExportCost, render_table
from clipvid.commands.benchmark import main


def test_ratios_are_taken_round_by_round() -> None:
    seconds = {"eager": [4.0, 8.0, 6.0], "torch": [2.0, 8.0, 6.0], "onnx": [1.0, 4.0, 3.0]}
    row = ExportCost("tiny", 2, seconds, {"eager": 500.0, "torch": 400.0, "onnx": 100.0}, 2e-7)
    assert row.speed("onnx") == 2
    table = render_table([row], ExportBenchmark())
    assert "| tiny, 2 threads, onnxruntime | 3 | 2.00 | 100 |" in " ".join(table.split(" ")).replace("  ", " ")
    assert "largest difference of a probability 2e-07" in table


def test_threads_are_checked() -> None:
    with pytest.raises(InputError, match=r"benchmark.threads=\[0\]: expected numbers of at least 1"):
        ExportBenchmark(threads=[0])


@pytest.mark.slow
def test_every_runtime_is_measured(clip_folder, tmp_path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    options = {"backbones": [f"local-dir:{clip_folder}"], "pretrained": None, "num_frames": 2, "threads": [1]}
    (tmp_path / "in.json").write_text(json.dumps(options | {"batch_size": 2, "repeats": 2}))
    main(["export", "--config", str(tmp_path / "in.json"), f"--output_dir={tmp_path / 'run'}"])
    (row,) = json.loads((tmp_path / "run" / "metrics.json").read_text())["rows"]
    for runtime in ("eager", "torch", "onnx"):
        assert len(row["seconds"][runtime]) == 2
        assert min(row["seconds"][runtime]) > 0
    assert row["memory"]["onnx"] < row["memory"]["eager"]
    assert row["difference"] < 1e-4
