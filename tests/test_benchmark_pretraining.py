"""`clipvid benchmark pretraining`: resume, and a table that matches the predictions."""

import json
from pathlib import Path

import pytest

from clipvid.benchmarks import pretraining as command
from clipvid.commands.benchmark import main
from clipvid.experiments import trial
from clipvid.training.config import TrainingConfig
from clipvid.training.pretrain import PretrainConfig

pytestmark = pytest.mark.slow  # the study trains eight models

CONFIG = {
    "adapters": {"st": {"name": "st_adapter", "channels": 8}},
    "stages": {"order": ["order", "distillation"]},
    "fewer": 1,
    "more": 2,
    "epochs": {"1": 2},
}
WORLD = {
    "objects": ["ball", "star"], "motions": ["horizontal"], "num_frames": 8, "image_size": 48,
    "train_per_class": 4, "val_per_class": 0, "test_per_class": 3,
}  # fmt: skip
TRAINING = {"epochs": 1, "per_device_train_batch_size": 4, "report_to": "none"}


class Killed(BaseException):
    """Exception in place of the end of the process."""


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> tuple[Path, dict[Path, float]]:
    """Return the folder of a study that was killed after its first row and restarted, and its first files' times."""
    folder = tmp_path_factory.mktemp("study")
    data = {"root": str(folder / "world"), "val": "test.csv", "world": WORLD, "num_workers": 0}
    model = {"num_frames": 4, "tune": ["adapters"]}
    protocol = {"name": "few_shot", "shots": [1, 2], "seeds": [0, 1]}
    evaluate = {"recipe": {"model": model, "training": TRAINING}, "data": data, "protocol": protocol}
    evaluate |= {"controls": ["reversed"], "zero_shot": False}
    inputs = CONFIG | {"pretrain": {"model": model, "data": data, "training": TRAINING}, "evaluate": evaluate}
    (folder / "in.yaml").write_text(json.dumps(inputs))
    args = ["pretraining", "--config", str(folder / "in.yaml"), f"--output_dir={folder / 'run'}"]
    original, calls = trial.evaluate_protocol, 0

    def die(*arguments):
        nonlocal calls
        calls += 1
        if calls > 2:
            raise Killed
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "evaluate_protocol", die)
        with pytest.raises(Killed):
            main(args)
    written = {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("model.safetensors")}
    main(args)
    return folder / "run", written


def test_finished_trials_are_not_repeated(study):
    folder, written = study
    trained = {path.parent.relative_to(folder) for path in written if "checkpoints" not in path.parts}
    fresh = {Path(f"st/fresh/k{shots}/k{shots}_seed{seed}") for shots in (1, 2) for seed in (0, 1)}
    assert trained == {*fresh, Path("st/order/pretrained")}
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())


def test_figures_match_predictions(study):
    folder, _ = study
    fresh, order = json.loads((folder / "metrics.json").read_text())["rows"]
    assert (fresh["stage"], order["stage"], fresh["gain"], fresh["held"]) == ("fresh", "order", None, False)
    for row in (fresh, order):
        for shots in ("1", "2"):
            actual = json.loads((folder / f"st/{row['stage']}/k{shots}/metrics.json").read_text())["few_shot"]
            figure = row["shots"][shots]
            assert figure["mean"] == pytest.approx(actual[f"K={shots}"]["mean"])
            assert figure["std"] == pytest.approx(actual[f"K={shots}"]["std"])
            assert figure["low"] <= figure["mean"] <= figure["high"]
    assert order["gain"]["mean"] == pytest.approx(order["shots"]["1"]["mean"] - fresh["shots"]["2"]["mean"])
    zero_shot = json.loads((folder / "st/order/pretrained/metrics.json").read_text())
    assert (order["before"], order["after"]) == (zero_shot["before"]["object"]["value"], zero_shot["object"]["value"])
    assert order["held"] == (order["gain"]["mean"] >= 0 and order["before"] - order["after"] <= 0.02)
    start = json.loads((folder / "st/order/k1/k1_seed0/run.json").read_text())["config"]["model"]["init_from"]
    assert start == str(folder / "st/order/pretrained")


def test_the_table_has_a_line_for_each(study):
    table = (study[0] / "table.md").read_text()
    lines = [line for line in table.splitlines() if line.startswith("| st ")]
    assert [line.split("|")[2].strip() for line in lines] == ["fresh", "order"]
    assert "zero-shot object" in table.splitlines()[0]
    assert "The hypothesis held for" in table


def test_invalid_study_is_refused():
    with pytest.raises(ValueError, match=r"fewer=3, more=5: both must be among shots=\[2, 5, 20\]"):
        command.PretrainingBenchmark(fewer=3)
    with pytest.raises(ValueError, match="'fresh' is reserved for adapters"):
        command.PretrainingBenchmark(stages={"fresh": ["order"]})
    chosen = PretrainConfig(training=TrainingConfig(load_best_model_at_end=True))
    with pytest.raises(ValueError, match="would select the weights on the test videos"):
        command.PretrainingBenchmark(pretrain=chosen)
    lower = PretrainConfig(training=TrainingConfig(mixed_precision="bf16"))
    with pytest.raises(ValueError, match=r"mixed_precision of pretrain.training and evaluate: \('bf16', 'no'\)"):
        command.PretrainingBenchmark(pretrain=lower)
    with pytest.raises(ValueError, match="unknown objective"):
        command.PretrainingBenchmark(stages={"x": ["ordr"]})
