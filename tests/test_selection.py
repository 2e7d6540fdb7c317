"""Choice between adapters and frames averaged before a fine-tuning."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import clipvid
from clipvid import InputError
from clipvid.data.lists.samples import Sample
from clipvid.data.manifest import ClassInfo, Manifest
from clipvid.data.synthetic.world import WorldConfig, build_world
from clipvid.experiments import selection
from clipvid.experiments.selection import ADAPTERS, NONE, compare, held_out_folds
from clipvid.training.config import SelectionConfig


def manifest(labels: list[int], groups: list[str] | None = None) -> Manifest:
    samples = tuple(
        Sample(f"{index}.mp4", label, None if groups is None else groups[index]) for index, label in enumerate(labels)
    )
    return Manifest(samples, tuple(ClassInfo(label, f"class {label}") for label in range(max(labels) + 1)), Path())


# Folds


@pytest.mark.parametrize(("labels", "folds"), [([0, 1] * 6, 3), ([0] * 7 + [1] * 5, 3), ([0, 1, 2, 2, 2], 2)])
def test_folds_hold_out_every_video_once_and_spread_classes(labels: list[int], folds: int) -> None:
    videos = manifest(labels)
    unit, places = held_out_folds(videos, folds, 0)
    assert unit == "video"
    assert sorted(index for fold in places for index in fold) == list(range(len(labels)))
    assert max(map(len, places)) - min(map(len, places)) <= 1
    for label, count in Counter(labels).items():
        shares = [sum(labels[index] == label for index in fold) for fold in places]
        assert max(shares) - min(shares) <= 1, (label, count)


def test_folds_hold_out_whole_groups() -> None:
    groups = [name for name in "abcde" for _ in range(4)]
    unit, places = held_out_folds(manifest([0, 1] * 10, groups), 3, 0)
    assert unit == "group"
    held = [{groups[index] for index in fold} for fold in places]
    assert sum(map(len, held)) == 5
    assert set.union(*held) == set("abcde")


def test_fewer_groups_than_folds_are_held_out_one_by_one() -> None:
    assert held_out_folds(manifest([0, 0, 1, 1], ["a", "b"] * 2), 3, 0) in (
        ("group", [[0, 2], [1, 3]]),
        ("group", [[1, 3], [0, 2]]),
    )


@pytest.mark.parametrize("groups", [["a"] * 10, [str(index) for index in range(10)]])
def test_one_group_and_a_group_per_video_are_not_groups(groups: list[str]) -> None:
    assert held_out_folds(manifest([0, 1] * 5, groups), 3, 0)[0] == "video"


def test_folds_depend_on_the_seed_only() -> None:
    videos = manifest([0, 1, 2] * 9)
    assert held_out_folds(videos, 3, 1) == held_out_folds(videos, 3, 1)
    assert held_out_folds(videos, 3, 1) != held_out_folds(videos, 3, 2)


def test_subset_keeps_the_share_of_each_class() -> None:
    labels = [0] * 60 + [1] * 30 + [2] * 10
    subset = selection._subset(manifest(labels), 50, 0)
    assert Counter(sample.label for sample in subset.samples) == {0: 30, 1: 15, 2: 5}
    assert selection._subset(manifest(labels), 100, 0) == manifest(labels)


# Choice


@pytest.mark.parametrize(("adapters", "none", "chosen"), [(30, 20, ADAPTERS), (20, 30, NONE), (20, 20, ADAPTERS)])
def test_the_more_accurate_one_is_chosen(adapters: int, none: int, chosen: str) -> None:
    record = compare({ADAPTERS: (adapters, 40), NONE: (none, 40)})
    assert record["chosen"] == chosen
    assert record["difference"] == pytest.approx((adapters - none) / 40)
    assert record[ADAPTERS]["low"] < adapters / 40 < record[ADAPTERS]["high"]


@pytest.mark.parametrize("options", [{"folds": 1}, {"folds": -1}, {"max_videos": 0}])
def test_options_without_sense_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(InputError, match=r"selection\."):
        SelectionConfig(**options)


# Runs


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    config = WorldConfig(
        objects=("ball", "box"), motions=("horizontal",), num_frames=4, image_size=32,
        train_per_class=3, val_per_class=1, test_per_class=0,
    )  # fmt: skip
    return build_world(config, tmp_path_factory.mktemp("world"), progress=False)


def config(world: Path, output: Path, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": output,
        "model": {"adapter": {"name": "ila", "hidden": 16}, "num_frames": 2, **more.pop("model", {})},
        "data": {"root": world, "num_workers": 0},
        "training": {"epochs": 1, "per_device_train_batch_size": 8, "report_to": "none"},
        "selection": {"folds": 2},
        **more,
    }


def choose(monkeypatch: pytest.MonkeyPatch, chosen: str) -> list[dict[str, Any]]:
    """Make the comparison choose `chosen`, and return the list of the outcomes that it gets."""
    outcomes: list[dict[str, Any]] = []

    def decide(counts: dict[str, tuple[int, int]]) -> dict[str, Any]:
        outcomes.append(counts)
        return compare(counts) | {"chosen": chosen}

    monkeypatch.setattr(selection, "compare", decide)
    return outcomes


def test_run_trains_without_adapters_that_do_harm(world: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    outcomes = choose(monkeypatch, NONE)
    output = tmp_path / "run"
    run = clipvid.finetune(config(world, output, model={"head": "linear"}))
    assert [count for _, count in outcomes[0].values()] == [12, 12]  # every training video once
    assert run.model is not None
    assert not run.model.encoder.adapters()
    record = json.loads((output / "selection.json").read_text())
    assert run.figures["selection"] == record
    assert (record["adapter"], record["unit"], record["videos"], record["chosen"]) == ("ila", "video", 12, NONE)
    assert "frames averaged, fine-tuned" in (output / "report.html").read_text()
    assert not (output / "selection").exists()
    printed = capsys.readouterr().out
    assert "2-fold cross-validation on 12 training videos compares ila with the model without it" in printed
    assert "and frames averaged 0." in printed
    assert "The model is trained without ila" in printed


def test_groups_of_adapters_are_left_out_without_adapters(world: Path, tmp_path: Path, monkeypatch) -> None:
    choose(monkeypatch, NONE)
    groups = [{"match": "encoder.layers.*.adapters.*", "lr": 0.001, "weight_decay": 0.0}]
    run = clipvid.finetune(config(world, tmp_path / "run", model={"head": "linear"}, optim={"groups": groups}))
    assert run.figures["selection"]["chosen"] == NONE
    groups[0]["match"] = "nothing.*"
    with pytest.raises(InputError, match=r"optim\.groups: no trained parameter matches"):
        clipvid.finetune(config(world, tmp_path / "wrong", model={"head": "linear"}, optim={"groups": groups}))


def test_run_trains_adapters_that_help(world: Path, tmp_path: Path, monkeypatch) -> None:
    choose(monkeypatch, ADAPTERS)
    run = clipvid.finetune(config(world, tmp_path / "run"))
    assert run.model is not None
    assert run.model.encoder.adapters()
    plain = clipvid.finetune(config(world, tmp_path / "plain", selection={"folds": 0}))
    assert plain.model is not None
    assert "selection" not in plain.figures
    trained = [each.model.trained_state() for each in (run, plain) if each.model is not None]
    assert all((trained[0][name] == trained[1][name]).all() for name in trained[1])  # the folds leave no trace


def test_zero_shot_clip_is_kept_if_training_does_harm(world: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    choose(monkeypatch, NONE)
    run = clipvid.finetune(config(world, tmp_path / "run"))
    assert (run.figures["trained"], run.figures["selection"]["without"]) == (False, "CLIP without training")
    printed, page = capsys.readouterr().out, (tmp_path / "run/report.html").read_text()
    assert "The model is CLIP without training; selection.folds=0 and another output_dir train with ila" in printed
    assert "with CLIP without training, the chosen way" in printed
    assert ">CLIP without training<" in page
    assert "frames averaged" not in printed + page
    assert run.model is not None
    assert not run.model.trained_state()
    plain = clipvid.create_model("tiny", adapter="none", num_frames=2, labels=run.model.labels, templates="single")
    video = next(world.rglob("*.mp4"))
    assert (clipvid.Predictor(run.model.eval()).scores(video) == clipvid.Predictor(plain.eval()).scores(video)).all()


def test_a_choice_is_made_once(world: Path, tmp_path: Path, monkeypatch) -> None:
    outcomes = choose(monkeypatch, NONE)
    with monkeypatch.context() as patch:
        patch.setattr("clipvid.training.finetune.write_run", interrupt_in(tmp_path / "run"))
        with pytest.raises(KeyboardInterrupt):
            clipvid.finetune(config(world, tmp_path / "run"))
    assert (tmp_path / "run/selection.json").exists()
    run = clipvid.finetune(config(world, tmp_path / "run"))
    assert len(outcomes) == 1
    assert run.figures["selection"]["chosen"] == NONE


def interrupt_in(folder: Path) -> Any:
    """Return `write_run` that fails in `folder`."""
    from clipvid.training.finetune import write_run

    def write(output: Path, *args: Any) -> None:
        if output == folder:
            raise KeyboardInterrupt
        write_run(output, *args)

    return write


def test_interrupted_folds_are_not_trained_again(world: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("clipvid.training.finetune.write_run", interrupt_in(output / "selection/fold_1_adapters"))
        with pytest.raises(KeyboardInterrupt):
            clipvid.finetune(config(world, output))
    assert not (output / "selection.json").exists()
    clipvid.finetune(config(world, output))
    printed = capsys.readouterr().out
    assert printed.count("fold_0_adapters is already finished") == 1
    assert printed.count("fold_0_none is already finished") == 1


@pytest.mark.parametrize("model", [{"adapter": "none", "head": "linear"}, {"tune": ["head", "layernorm"]}])
def test_nothing_is_compared_without_trained_adapters(world: Path, tmp_path: Path, model: dict[str, Any]) -> None:
    run = clipvid.finetune(config(world, tmp_path / "run", model=model))
    assert "selection" not in run.figures


def test_a_set_too_small_for_folds_says_so(tmp_path: Path, capsys) -> None:
    small = WorldConfig(
        objects=("ball",), motions=("horizontal",), num_frames=4, image_size=32,
        train_per_class=1, val_per_class=1, test_per_class=0,
    )  # fmt: skip
    world = build_world(small, tmp_path / "world", progress=False)
    run = clipvid.finetune(config(world, tmp_path / "run", training={"epochs": 1, "per_device_train_batch_size": 2}))
    assert "selection" not in run.figures
    assert "not compared with the model without them" in capsys.readouterr().out
