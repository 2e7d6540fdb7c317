"""Options and output folders of the training verbs: what is refused, and what is written before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from clipvid.commands import run
from clipvid.data.synthetic.world import WorldConfig, build_world
from clipvid.runs.config_files import parse_config
from clipvid.training.config import FinetuneConfig, PretrainClipConfig, PretrainConfig, RunConfig

CONFIGS: dict[str, type[RunConfig]] = {
    "finetune": FinetuneConfig,
    "pretrain": PretrainConfig,
    "pretrain-clip": PretrainClipConfig,
}
WORLD = WorldConfig(
    objects=("ball", "star"), motions=("horizontal",), num_frames=4, image_size=32,
    train_per_class=2, val_per_class=1, test_per_class=0,
)  # fmt: skip
VIDEO = {
    "model.backbone": "tiny",
    "model.adapter": "{name: ila, hidden: 16}",
    "model.num_frames": 2,
    "training.per_device_train_batch_size": 4,
    "data.num_workers": 0,
}
STILLS = {
    "model.backbone": "tiny",
    "model.pretrained": "random",
    "model.adapter": "none",
    "model.num_frames": 1,
    "model.tune": "[full, text]",
    "stills.train": 8,
    "stills.val": 4,
    "training.per_device_train_batch_size": 4,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return build_world(WORLD, tmp_path_factory.mktemp("world"), progress=False)


@pytest.fixture
def words(world: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Options of a run of one epoch of two steps or one in `tmp_path`/run."""

    def build(verb: str, *more: str) -> list[str]:
        common = {"output_dir": tmp_path / "run", "training.epochs": 1, "training.report_to": "none"}
        own = STILLS if verb == "pretrain-clip" else VIDEO | {"data.root": world}
        return [*(f"--{key}={value}" for key, value in (common | own).items()), *more]

    return build


def refusal(capsys, verb: str, args: list[str]) -> str:
    """Return the one line on which a verb refuses its options."""
    with pytest.raises(SystemExit) as end:
        run(verb, args)
    lines = capsys.readouterr().err.strip().splitlines()
    assert end.value.code == 1
    assert len(lines) == 1, lines
    return lines[0]


# The metric that chooses the best weights


@pytest.mark.parametrize(
    ("verb", "metric", "names"),
    [
        ("finetune", "val_tpo1", r"did you mean 'val_top1'"),
        ("finetune", "val_object", r"measures val_top1"),
        ("pretrain", "val_objcet", r"did you mean 'val_object'"),
        ("pretrain-clip", "val_objet", r"did you mean 'val_object'"),
        ("pretrain-clip", "val_top1", r"measures val_object"),
    ],
)
def test_unknown_metric_is_refused_before_anything_is_written(words, capsys, tmp_path, verb, metric, names) -> None:
    best = ["--training.load_best_model_at_end=true", f"--training.metric_for_best_model={metric}"]
    line = refusal(capsys, verb, words(verb, *best))
    assert f"training.metric_for_best_model={metric!r}" in line
    assert names in line
    assert not (tmp_path / "run").exists()


def test_object_metric_needs_classes_with_objects(words, capsys, tmp_path, world) -> None:
    rows = [line.split(",")[:2] for line in (world / "classes.csv").read_text().splitlines()]
    (tmp_path / "plain.csv").write_text("".join(",".join(row) + "\n" for row in rows))
    best = ["--training.load_best_model_at_end=true", "--training.metric_for_best_model=val_object"]
    line = refusal(capsys, "pretrain", words("pretrain", *best, f"--data.classes={tmp_path / 'plain.csv'}"))
    assert "val_object" in line
    assert "val_top1" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", CONFIGS)
def test_default_metric_is_measured(verb: str, tmp_path: Path) -> None:
    best = parse_config(CONFIGS[verb], ["--training.load_best_model_at_end=true"], "test")
    assert best.training.metric_for_best_model == CONFIGS[verb].METRICS[0]
    path = tmp_path / "run.yaml"
    path.write_text("training: {load_best_model_at_end: true, epochs: 3}\n")
    assert parse_config(CONFIGS[verb], ["--config", str(path)], "test").training.epochs == 3


@pytest.mark.parametrize("verb", CONFIGS)
def test_former_default_of_the_metric_works_where_nothing_reads_it(verb: str) -> None:
    parse_config(CONFIGS[verb], ["--training.metric_for_best_model=val_top1"], "test")
