"""`clipvid.finetune` and `clipvid.evaluate` do what the verbs do."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import clipvid
from clipvid import InputError, RunError
from clipvid.commands import evaluate as evaluate_verb
from clipvid.commands import finetune as finetune_verb
from clipvid.data.synthetic.world import WorldConfig, build_world
from clipvid.experiments.config import EvaluateConfig
from clipvid.runs.config_files import read_config
from clipvid.training.config import FinetuneConfig

WORLD = WorldConfig(
    objects=("ball", "star"), motions=("horizontal",), num_frames=6, image_size=32,
    train_per_class=3, val_per_class=2, test_per_class=0,
)  # fmt: skip
NAMES = ["ball moving left", "ball moving right", "star moving left", "star moving right"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_world(WORLD, tmp_path_factory.mktemp("world"), progress=False)


def training(folder: Path, world: Path, **data: Any) -> dict[str, Any]:
    """Config of one step of training."""
    return {
        "output_dir": folder,
        "model": {"adapter": {"name": "ila", "hidden": 16}, "num_frames": 3},
        "data": {"root": world, "num_workers": 0, **data},
        "training": {"epochs": 1, "per_device_train_batch_size": 12, "report_to": "none"},
        "optim": {"lr": 0.01},
    }


def evaluation(folder: Path, world: Path, **options: Any) -> dict[str, Any]:
    data = {"root": world, "num_workers": 0}
    return {"output_dir": folder, "num_frames": 3, "controls": [], "data": data, "hardest_clips": 0} | options


def write(config: dict[str, Any], path: Path) -> Path:
    path.write_text(yaml.safe_dump(json.loads(json.dumps(config, default=str))))
    return path


def comparable(folder: Path) -> dict[str, Any]:
    figures = json.loads((folder / "metrics.json").read_text())
    return {key: value for key, value in figures.items() if key not in ("config", "name")}


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> clipvid.Run:
    return clipvid.finetune(training(tmp_path_factory.mktemp("trained"), world))


def test_finetune_equals_the_verb(trained: clipvid.Run, world: Path, tmp_path: Path) -> None:
    finetune_verb.main(["--config", str(write(training(tmp_path / "verb", world), tmp_path / "run.yaml"))])
    assert comparable(trained.folder) == comparable(tmp_path / "verb")
    assert trained.figures == json.loads((trained.folder / "metrics.json").read_text())
    assert trained.model is not None
    assert trained.model.labels == NAMES
    by_verb = clipvid.from_pretrained(tmp_path / "verb").trained_state()
    assert all(torch.equal(value, by_verb[name]) for name, value in trained.model.trained_state().items())


def test_finished_run_is_loaded(trained: clipvid.Run, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = clipvid.finetune(read_config(FinetuneConfig, training(trained.folder, world)))
    assert again.figures == trained.figures
    assert "is finished already" in capsys.readouterr().out


@pytest.mark.parametrize("source", ["config", "mapping", "file", "model"])
def test_evaluate_equals_the_verb(trained: clipvid.Run, world: Path, tmp_path: Path, source: str) -> None:
    config = evaluation(tmp_path / "verb", world, model=trained.folder)
    evaluate_verb.main(["--config", str(write(config, tmp_path / "run.yaml"))])
    config["output_dir"] = tmp_path / "python"
    if source == "model":
        run = clipvid.evaluate(trained.model, config | {"model": "tiny"})
    elif source == "file":
        run = clipvid.evaluate(write(config, tmp_path / "python.yaml"))
    else:
        run = clipvid.evaluate(config if source == "mapping" else read_config(EvaluateConfig, config))
    assert comparable(run.folder) == comparable(tmp_path / "verb")
    assert run.figures == json.loads((tmp_path / "python" / "metrics.json").read_text())
    assert run.model is not None
    assert run.model.labels == NAMES


def test_leave_one_group_out_has_no_single_model(world: Path, tmp_path: Path) -> None:
    config = training(tmp_path, world, protocol="leave_one_group_out", group_pattern="(ball|star)")
    config["training"]["per_device_train_batch_size"] = 8
    run = clipvid.finetune(config)
    assert run.model is None
    assert (tmp_path / "fold_ball" / "model.safetensors").is_file()
    assert run.figures == json.loads((tmp_path / "metrics.json").read_text())


@pytest.mark.parametrize("call", [clipvid.finetune, clipvid.evaluate])
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"data": {"rooot": "x"}}, "rooot"),
        ({"data": {"stride": "two"}}, r"data\.stride"),
        ({"data": {"stride": 0}}, r"data\.stride"),
        ({"data": None}, "data"),
        ({"data": {"root": object()}}, "a mapping that YAML cannot express"),
        (3, "config is a int; expected a .*Config, a mapping, or the path"),
        ("no/such.yaml", "no/such.yaml.*: no such file"),
        (DATA := read_config(FinetuneConfig, {}).data, "config is a DataConfig"),
    ],
)
def test_configs_are_refused_with_an_input_error(call: Any, config: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(config)


@pytest.mark.parametrize("text", ["data: {rooot: x}", "data: [", "[1, 2]", "data: {stride: two}"])
def test_yaml_files_are_refused_with_an_input_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(InputError):
        clipvid.finetune(tmp_path / "run.yaml")


def test_a_folder_with_another_run_is_refused(trained: clipvid.Run, world: Path) -> None:
    with pytest.raises(InputError, match=r"another config \(seed differ\)"):
        clipvid.finetune(training(trained.folder, world) | {"seed": 1})


def test_a_second_precision_in_a_process_is_refused(trained: clipvid.Run, world: Path, tmp_path: Path) -> None:
    config = evaluation(tmp_path / "run", world, mixed_precision="bf16")
    with pytest.raises(RunError, match="mixed_precision=bf16, but an earlier run of this process has no"):
        clipvid.evaluate(config)
    assert not (tmp_path / "run").exists()


def test_a_model_and_a_recipe_exclude_each_other(trained: clipvid.Run, world: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="recipe trains a model"):
        clipvid.evaluate(trained.model, evaluation(tmp_path, world, recipe={}))
    with pytest.raises(InputError, match="expected a VideoCLIP"):
        clipvid.evaluate({}, evaluation(tmp_path, world))
