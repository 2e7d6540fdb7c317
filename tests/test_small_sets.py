"""Training sets of protocols that do not fill a batch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from clipvid import InputError
from clipvid.commands import run
from clipvid.data.batches import TrainBatches
from clipvid.data.synthetic.world import WorldConfig, build_world
from clipvid.training.config import TrainingConfig
from clipvid.training.small_sets import fit_small_set

WORLD = WorldConfig(
    objects=("ball", "star"), motions=("horizontal",), num_frames=4, image_size=32,
    train_per_class=3, val_per_class=1, test_per_class=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return build_world(WORLD, tmp_path_factory.mktemp("world"), progress=False)


@given(st.integers(1, 200), st.integers(1, 32), st.integers(1, 8), st.integers(1, 4))
def test_fitted_batch_is_filled_and_no_larger_one_fits(clips: int, size: int, steps: int, processes: int):
    training = TrainingConfig(per_device_train_batch_size=size, gradient_accumulation_steps=steps)
    if clips < processes:
        with pytest.raises(InputError, match="use fewer processes"):
            fit_small_set(training, clips, processes)
        return
    fitted = fit_small_set(training, clips, processes)
    size, steps = fitted.per_device_train_batch_size, fitted.gradient_accumulation_steps
    batches = TrainBatches(clips, size, seed=0, world_size=processes, accumulation=steps)
    assert batches.steps_per_epoch >= 1
    if fitted != training:
        assert (size + 1) * steps * processes > clips


def test_options_are_named_as_they_are_typed():
    with pytest.raises(InputError, match=r"12 training videos .*per_device_train_batch_size 16.*lower one") as error:
        TrainBatches(12, 16, seed=0)
    assert "training.gradient_accumulation_steps 1" in str(error.value)


PROTOCOLS = {
    "few_shot": ("{name: few_shot, shots: [1, 2], seeds: [0]}", {"k1_seed0": 4, "k2_seed0": 8}),
    "base_to_novel": ("{name: base_to_novel, shots: 2}", {"base_seed0": 4}),
    "holdout": ("holdout", {"model": 12}),
}


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_small_sets_of_protocols_train_at_the_default_batch(protocol: str, world: Path, tmp_path: Path, capsys):
    name, batches = PROTOCOLS[protocol]
    model = {"backbone": "tiny", "adapter": "none", "tune": ["head"], "head": "linear", "num_frames": 2}
    if protocol == "base_to_novel":
        model = {"backbone": "tiny", "adapter": {"name": "ila", "hidden": 16}, "num_frames": 2}
    recipe = {"model": model, "training": {"epochs": 1, "report_to": "none"}}
    words = [
        f"--recipe={json.dumps(recipe)}", f"--protocol={name}", f"--data.root={world}", "--data.num_workers=0",
        f"--output_dir={tmp_path / 'run'}", "--controls=[]", "--zero_shot=false", "--hardest_clips=0",
    ]  # fmt: skip
    run("evaluate", words)
    said = capsys.readouterr().out
    for folder, size in batches.items():
        record = yaml.safe_load((tmp_path / "run" / folder / "run.yaml").read_text())
        assert record["training"]["per_device_train_batch_size"] == size
        line = f"{size} training videos ("
        assert said.count(line) == 1
        assert said.index(line) < said.index("weight decay")
    assert f"per_device_train_batch_size is {max(batches.values())} instead of 16" in said
    run("evaluate", words)
    assert (tmp_path / "run/metrics.json").is_file()


def test_small_folds_are_refused_before_the_first_one_trains(world: Path, tmp_path: Path, capsys):
    lines = [line.split(",")[:2] for line in (world / "train.csv").read_text().splitlines()[1:]]
    groups = ["one"] * 8 + ["two"] * 4
    rows = [f"{path},{label},{group}\n" for (path, label), group in zip(lines, groups, strict=True)]
    (world / "groups.csv").write_text("path,label,group\n" + "".join(rows[:-1]))
    (world / "rest.csv").write_text("path,label,group\n" + rows[-1])
    words = [
        "--data.protocol=leave_one_group_out", f"--data.root={world}", "--data.train=groups.csv", "--data.val=rest.csv",
        "--model.backbone=tiny", "--training.per_device_train_batch_size=6", f"--output_dir={tmp_path / 'run'}",
        "--training.report_to=none", "--data.num_workers=0",
    ]  # fmt: skip
    with pytest.raises(SystemExit):
        run("finetune", words)
    assert "4 training videos do not fill one global batch of 6" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
