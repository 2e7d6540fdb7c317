"""Advice at the end of runs at chance or of few steps."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from clipvid.commands import run
from clipvid.data.synthetic.world import WorldConfig, build_world
from clipvid.training.advice import FEW_STEPS, advice
from clipvid.training.config import FinetuneConfig

CONFIG = FinetuneConfig()


def figures(nll: float | None, low: float = 0.0) -> dict:
    return {"nll": nll, "top1": {"value": 0.5, "low": low, "high": 1.0}}


@pytest.mark.parametrize("classes", [2, 4, 174])
@pytest.mark.parametrize("nll", [1.0, 0.99, 2.0])
def test_a_run_at_chance_says_so_and_what_to_try(classes: int, nll: float):
    line = advice(figures(nll * math.log(classes)), 1000, classes, CONFIG)
    assert f"(NLL) is {nll * math.log(classes):.3f}, that of a guess among {classes} classes" in line
    assert all(
        option in line for option in ("optim.lr (now 0.0005)", "training.epochs (now 10)", "labels of data.train")
    )
    assert "\n" not in line


def test_a_run_at_chance_after_few_steps_is_advised_to_train_longer():
    line = advice(figures(math.log(4)), 6, 4, replace(CONFIG, training=replace(CONFIG.training, epochs=3)))
    assert "at chance" in line
    assert "trained for 6 steps only: raise training.epochs (now 3) or lower training.per_device_train" in line


@pytest.mark.parametrize("steps", [1, FEW_STEPS - 1])
def test_few_steps_alone_are_mentioned(steps: int):
    line = advice(figures(0.1, low=0.9), steps, 4, CONFIG)
    assert line.startswith(f"the model was trained for {steps} steps only")


@pytest.mark.parametrize(
    ("nll", "low", "classes"),
    [(0.9 * math.log(4), 0.0, 4), (2.0, 0.6, 4), (None, 0.0, 4), (0.0, 1.0, 1)],
    ids=["below a guess", "right but overconfident", "nothing readable", "one class"],
)
def test_other_runs_get_no_advice(nll: float | None, low: float, classes: int):
    assert advice(figures(nll, low), FEW_STEPS, classes, CONFIG) is None


def test_finetune_ends_with_the_advice(tmp_path: Path, capsys):
    world = WorldConfig(
        objects=("ball", "star"), motions=("horizontal",), num_frames=4, image_size=32,
        train_per_class=2, val_per_class=2, test_per_class=0,
    )  # fmt: skip
    root = build_world(world, tmp_path / "world", progress=False)
    words = [
        f"--data.root={root}", "--data.num_workers=0", "--model.backbone=tiny", "--model.adapter=none",
        "--model.head=linear", "--model.tune=[head]", "--model.num_frames=2", "--training.epochs=1", "--optim.lr=0",
        "--training.per_device_train_batch_size=8", "--training.report_to=none", f"--output_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    run("finetune", words)
    lines = capsys.readouterr().out.strip().splitlines()
    assert any("trained for 1 steps only" in line for line in lines[-8:])
