"""Configs: every YAML parses, unknown keys are refused, the command line takes precedence."""

from pathlib import Path

import pytest
import yaml

from clipvid.benchmarks.explain import ExplainBenchmark
from clipvid.benchmarks.ladder import LadderConfig
from clipvid.benchmarks.pretraining import PretrainingBenchmark
from clipvid.experiments.config import DemoConfig, Recipe
from clipvid.experiments.run import EvaluateConfig
from clipvid.experiments.suite import SuiteConfig
from clipvid.runs.config_files import config_record, parse_config
from clipvid.runs.output_folder import config_differences, prepare_output_dir
from clipvid.training.config import FinetuneConfig, TrainingConfig
from clipvid.training.pretrain import PretrainConfig
from clipvid.training.pretrain_clip import PretrainClipConfig

CONFIGS = Path(__file__).parent.parent / "configs"
RUNS = sorted(path for path in CONFIGS.rglob("*.yaml") if "accelerate" not in path.parts)
AFTER = {  # given before the config
    "two_clips.yaml": CONFIGS / "ladder/weizmann_tower.yaml",
    "five_to_ten_clips.yaml": CONFIGS / "ladder/ucf101_mini_tower.yaml",
    "world_few_clips.yaml": CONFIGS / "ladder/world.yaml",
}


def config_class(path: Path) -> type:
    if path.name == "suite.yaml":
        return SuiteConfig
    if path.parent.name == "ladder":
        return LadderConfig
    if "eval" in path.parts:
        return EvaluateConfig
    if path.parent.name == "explain":
        return ExplainBenchmark
    if path.parent.name == "pretraining":
        return PretrainingBenchmark
    if path.name == "tiny_clip.yaml":
        return PretrainClipConfig
    return PretrainConfig if path.parent.name == "pretrain" else FinetuneConfig


def test_there_are_configs() -> None:
    assert len(RUNS) >= 4


@pytest.mark.parametrize("kind", [DemoConfig, FinetuneConfig, PretrainConfig, PretrainClipConfig])
def test_no_arguments_give_the_defaults(kind: type) -> None:
    assert parse_config(kind, [], "test") == kind()


@pytest.mark.parametrize("path", RUNS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_config_parses_and_has_a_comment(path: Path) -> None:
    first = ["--config", str(AFTER[path.name])] if path.name in AFTER else []
    config = parse_config(config_class(path), [*first, "--config", str(path)], "test")
    record = config_record(config)

    def check(expected: object, actual: object, where: str) -> None:
        if isinstance(expected, dict) and isinstance(actual, dict):
            for key, value in expected.items():
                check(value, actual[key], f"{where}.{key}")
        elif isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
            for place, pair in enumerate(zip(expected, actual, strict=True)):
                check(*pair, f"{where}[{place}]")
        else:
            assert actual == expected, where

    check(yaml.safe_load(path.read_text()), record, "")


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: {adapter: {name: ila, hidden: 32}, num_frames: 4}\nseed: 3\n")
    config = parse_config(FinetuneConfig, ["--config", str(path), "--model.num_frames", "16", "--optim.lr=0.5"], "test")
    assert (config.model.num_frames, config.optim.lr, config.seed) == (16, 0.5, 3)
    assert config.model.adapter == {"name": "ila", "hidden": 32}


def test_the_command_line_wins_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: {num_frames: 4}\noptim: {lr: 0.1}\n")
    for words in (["--config", str(path)], [f"--config={path}"]):
        config = parse_config(FinetuneConfig, ["--model.num_frames", "16", *words, "--optim.lr=0.5"], "test")
        assert (config.model.num_frames, config.optim.lr) == (16, 0.5)
    second = tmp_path / "second.yaml"
    second.write_text("model: {num_frames: 2}\n")
    config = parse_config(FinetuneConfig, ["--config", str(path), "--seed", "3", "--config", str(second)], "test")
    assert (config.model.num_frames, config.optim.lr, config.seed) == (2, 0.1, 3)


def test_choices_from_the_command_line() -> None:
    config = parse_config(
        FinetuneConfig, ["--model.adapter", "{name: ila, norm: group}", "--model.pooling", "mit"], "test"
    )
    assert config.model.adapter == {"name": "ila", "norm": "group"}
    assert config.model.pooling == "mit"
    stack = parse_config(FinetuneConfig, ["--model.adapter", "[ila, {name: none}]"], "test")
    assert stack.model.adapter == ["ila", {"name": "none"}]


def test_sources_of_videos_are_paths_or_mappings(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("data: {train: {name: datasets, path: user/videos, streaming: true}, val: val/, classes: null}\n")
    data = parse_config(FinetuneConfig, ["--config", str(path)], "test").data
    assert (data.train["name"], data.train["streaming"], data.val, data.classes) == ("datasets", True, "val/", None)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model.adaptor", "ila"],
        ["--trainning.epochs", "3"],
        ["--training.epochs", "three"],
        ["--data.protocol", "k_fold"],
    ],
)
def test_unknown_or_wrong_typed_options_exit(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit):
        parse_config(FinetuneConfig, arguments, "test")
    assert arguments[0].lstrip("-").split(".")[-1] in capsys.readouterr().err


def test_unknown_keys_in_a_file_end_the_program(tmp_path: Path, capsys) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: {num_frmaes: 4}\n")
    with pytest.raises(SystemExit):
        parse_config(FinetuneConfig, ["--config", str(path)], "test")
    assert "num_frmaes" in capsys.readouterr().err


def test_print_config_shows_every_option(capsys) -> None:
    with pytest.raises(SystemExit) as end:
        parse_config(EvaluateConfig, ["--print_config"], "test")
    assert end.value.code == 0
    assert {"model", "data", "controls"} <= yaml.safe_load(capsys.readouterr().out).keys()


def test_folder_refuses_another_config(tmp_path: Path) -> None:
    first = FinetuneConfig(output_dir=str(tmp_path))
    prepare_output_dir(tmp_path, first)
    prepare_output_dir(tmp_path, first)
    with pytest.raises(FileExistsError, match=r"seed.*another output_dir"):
        prepare_output_dir(tmp_path, FinetuneConfig(output_dir=str(tmp_path), seed=1))


@pytest.mark.parametrize("place", ["file", "inline", "option"])
def test_former_names_of_options_work_with_a_warning(tmp_path: Path, place: str) -> None:
    text = (CONFIGS / "ladder" / "world.yaml").read_text().replace("\ntrial:", "\ncell:")
    (tmp_path / "ladder.yaml").write_text(text)
    sources = {"file": [str(tmp_path / "ladder.yaml")], "inline": [text]}
    args = ["--config", *sources.get(place, [str(CONFIGS / "ladder" / "world.yaml")]), "--trial.batch_size", "3"]
    args = [arg.replace("--trial.", "--cell.") for arg in args] if place == "option" else args
    with pytest.warns(FutureWarning, match="cell is now called trial"):
        config = parse_config(LadderConfig, args, "test")
    present = ["--config", str(CONFIGS / "ladder" / "world.yaml"), "--trial.batch_size", "3"]
    assert config == parse_config(LadderConfig, present, "test")


def test_former_and_current_name_together_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ladder.yaml"
    path.write_text("cell: {}\ntrial: {}\nrows: {none: {}}\n")
    with pytest.raises(ValueError, match="cell is the former name of trial"):
        parse_config(LadderConfig, ["--config", str(path)], "test")


def test_record_without_a_later_option_has_its_default():
    """The section `recipe` is None by default, so its options have the defaults of its class."""
    recipe = Recipe(training=TrainingConfig(mixup=0.5))
    config = EvaluateConfig(recipe=recipe)
    record = config_record(config)
    for section, option in (("optim", "min_lr"), ("training", "label_smoothing"), ("model", "pixel_mean")):
        del record["recipe"][section][option]
    assert config_differences(record, config) == []
    del record["recipe"]["training"]["mixup"]
    assert config_differences(record, config) == ["recipe.training.mixup"]
