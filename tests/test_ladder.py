"""`clipvid benchmark ladder` on real files: rows, seeds, controls, predictions, kills and failures."""

import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import REPOSITORY, posix_only
from processes import Worker
from scipy.stats import binomtest
from test_report import ParsedPage

from clipvid.benchmarks.ladder import LadderConfig, ladder_trials
from clipvid.benchmarks.ladder_report import ladder_figure
from clipvid.benchmarks.seed_statistics import (
    Hypothesis,
    accuracy_over_seeds,
    difference_over_seeds,
    mean_variance,
    measures,
)
from clipvid.commands.benchmark import main
from clipvid.data.manifest import ClassInfo
from clipvid.runs.config_files import parse_config

ROWS = {"none": {"model.adapter": "none"}, "shift": {"model.adapter": {"name": "shift", "fraction": 0.25}}}
PREDICTIONS = [
    {"row": "none", "measure": "pairs", "at_least": 0.0, "at_most": 1.0, "why": "a share"},
    {"row": "shift", "over": "none", "measure": "pairs", "at_least": 1.5, "why": "cannot be"},
    {"row": "shift", "measure": "horizontal", "under": "reversed", "why": "words"},
]


def ladder(clip_folder: Path, root: Path, **changed: object) -> list[str]:
    """Return arguments for a ladder of two rows and two seeds in `root`, with its config next to it."""
    world = {"objects": ["ball"], "motions": ["horizontal"], "num_frames": 6, "image_size": 32}
    world |= {"train_per_class": 4, "val_per_class": 0, "test_per_class": 3}
    trial = {
        "data": {"root": str(root / "videos"), "val": "test.csv", "world": world, "num_workers": 0},
        "controls": ["reversed", "single"],
        "zero_shot": False,
        "hardest_clips": 0,
        "recipe": {
            "model": {"backbone": f"local-dir:{clip_folder}", "num_frames": 3, "tune": ["adapters", "full"]},
            "training": {"epochs": 2, "per_device_train_batch_size": 4, "eval_epochs": 2, "report_to": "none"},
        },
    }
    config = {"trial": trial, "rows": ROWS, "seeds": [0, 1], "predictions": PREDICTIONS}
    root.mkdir(parents=True, exist_ok=True)
    (root / "ladder.yaml").write_text(
        yaml.safe_dump(config | {"output_dir": str(root / "out"), "cost_repeats": 1, "repeat": "shift"} | changed)
    )
    return ["ladder", "--config", str(root / "ladder.yaml")]


def logits(trial: Path) -> list:
    return pq.read_table(trial / "predictions.parquet")["view_logits"].to_pylist()


@pytest.fixture(scope="module")
def measured(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ladder")
    main(ladder(clip_folder, root))
    return root / "out"


@pytest.fixture(scope="module")
def results(measured: Path) -> dict:
    return json.loads((measured / "metrics.json").read_text())


def test_every_row_is_trained_under_every_seed(measured: Path, results: dict) -> None:
    assert (results["finished"], results["cells"], results["failed"]) == (5, 5, {})
    for row, actual in results["rows"].items():
        assert actual["seeds"] == [0, 1]
        trials = [json.loads((measured / f"trials/{row}_seed{seed}/metrics.json").read_text()) for seed in (0, 1)]
        for measure in ("top1", "pairs"):
            output = {"forward": [trial[measure]["value"] for trial in trials]}
            for name in ("reversed", "single"):
                output[name] = [trial["controls"][name][measure]["value"] for trial in trials]
            for condition, values in output.items():
                figure = actual["figures"][condition][measure]
                assert figure["values"] == pytest.approx(values)
                assert figure["mean"] == pytest.approx(np.mean(values))
                assert figure["std"] == pytest.approx(np.std(values, ddof=1))
                assert 0 <= figure["low"] <= figure["mean"] <= figure["high"] <= 1
        assert [trial["config"]["recipe"]["seed"] for trial in trials] == [0, 1]
    assert logits(measured / "trials/none_seed0") != logits(measured / "trials/none_seed1")


def test_repeated_trial_is_bitwise_equal(measured: Path, results: dict) -> None:
    assert results["repeat"] == {"cell": "shift, seed 0", "same": True}
    assert logits(measured / "trials/shift_seed0") == logits(measured / "trials/shift_seed0_again")
    assert "The second run of shift, seed 0 gave the same scores to the bit." in (measured / "table.md").read_text()


def test_predictions_are_judged(measured: Path, results: dict) -> None:
    first, second, third = results["predictions"]
    assert [each["held"] for each in (first, second, third)] == [True, False, None]
    assert [each["written_after"] for each in (first, second, third)] == [0, 0, 0]
    rows = {name: row["figures"] for name, row in results["rows"].items()}
    assert second["found"]["mean"] == pytest.approx(
        rows["shift"]["forward"]["pairs"]["mean"] - rows["none"]["forward"]["pairs"]["mean"]
    )
    assert third["found"] == rows["shift"]["reversed"]["horizontal"]
    table = (measured / "table.md").read_text()
    assert "| shift − none on pairs ≥ 1.5 | **no** |" in table
    assert "| shift on horizontal, reversed | - |" in table


def test_report_has_tables_and_picture(measured: Path, results: dict) -> None:
    page = ParsedPage((measured / "report.html").read_text(encoding="utf-8"))
    for heading in ("Accuracy and cost", "Rows", "Motion pairs", "Hypotheses", "Details"):
        assert heading in page.words
    assert all(name in page.text for name in results["rows"])
    assert "shift − none on pairs ≥ 1.5 no" in page.text
    assert results["command"] in page.text
    assert [image["src"][:24] for image in page.all("img")] == ["data:image/svg+xml;base6"]


def test_table_has_all_rows_and_settings(measured: Path, results: dict) -> None:
    lines = (measured / "table.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    cells = {row[0]: row for row in reversed(rows)}
    assert cells[""][1:4] == ["motion pairs", "top-1", "motion pairs less none"]
    assert (cells[""][-1], cells["shift"][-1]) == ("model.adapter", "shift fraction=0.25")
    top1 = results["rows"]["shift"]["figures"]["forward"]["top1"]
    assert cells["shift"][2] == f"{top1['mean']:.3f} ± {top1['std']:.3f} ({top1['low']:.2f} to {top1['high']:.2f})"
    less = results["rows"]["shift"]["less_none"]
    assert less["pairs"] == results["predictions"][1]["found"]
    for measure in ("pairs", "top1"):
        figures = [results["rows"][row]["figures"]["forward"][measure] for row in ("shift", "none")]
        assert less[measure]["mean"] == pytest.approx(figures[0]["mean"] - figures[1]["mean"])
        assert less[measure]["low"] <= less[measure]["mean"] <= less[measure]["high"]
    less = less["pairs"]
    assert cells["shift"][3] == f"{less['mean']:+.3f} ({less['low']:+.2f} to {less['high']:+.2f})"
    assert (results["rows"]["none"]["less_none"], cells["none"][3]) == ({}, "-")
    none, shift = (results["rows"][name]["cost"] for name in ("none", "shift"))
    assert none["forward"] == none["training"] == none["memory_ratio"] == 1
    assert shift["parameters"] == none["parameters"] > 0
    assert shift["gflops"] == none["gflops"] > 0
    assert (measured / "ladder.png").read_bytes().startswith(b"\x89PNG")
    for axes in ladder_figure(results).axes:  # rows of equal cost stand side by side
        places = sorted(bars[0].get_xdata()[0] for bars in axes.containers)
        assert places[0] < places[1]


def test_finished_ladder_accepts_new_rows(
    clip_folder: Path, measured: Path, results: dict, capsys: pytest.CaptureFixture
) -> None:
    written = {path: path.stat().st_mtime_ns for path in measured.rglob("trials/**/*") if path.is_file()}
    late = {"row": "none", "measure": "top1", "at_least": 0.0, "why": "now we know"}
    main(ladder(clip_folder, measured.parent, predictions=[*PREDICTIONS, late]))
    assert "5 of 5 trials are finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in written} == written
    again = json.loads((measured / "metrics.json").read_text())
    assert again["rows"] == results["rows"]
    assert [each["written_after"] for each in again["predictions"]] == [0, 0, 0, 5]
    assert "(written after 5 trials)" in (measured / "table.md").read_text()


def _ladder(args: list[str]) -> None:
    main(args)


def _children(folder: Path) -> list[int]:
    """Return processes that have a log below `folder` open."""
    actual = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            opened = [os.readlink(handle) for handle in (process / "fd").iterdir()]
        except OSError:
            continue
        if any(name.startswith(str(folder)) for name in opened):
            actual.append(int(process.name))
    return actual


@pytest.mark.slow
@posix_only
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_killed_ladder_resumes(
    clip_folder: Path, measured: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture
) -> None:
    args = ladder(clip_folder, tmp_path, repeat=None)
    trials = tmp_path / "out" / "trials"
    worker = Worker(tmp_path / "log", {}, _ladder, args)
    deadline = time.monotonic() + 300
    while not (trials / "shift_seed0" / "run.yaml").exists():
        assert worker.process.is_alive(), worker.said
        assert time.monotonic() < deadline, worker.said
        time.sleep(0.02)
    worker.signal(name)
    assert worker.ended() != 0
    while _children(trials):
        assert time.monotonic() < deadline, "the trials of a ladder outlive it"
        time.sleep(0.02)
    before = (trials / "none_seed0" / "metrics.json").stat().st_mtime_ns
    assert not (trials / "none_seed1").exists()
    main(args)
    assert "1 of 4 trials are finished" in capsys.readouterr().out
    assert (trials / "none_seed0" / "metrics.json").stat().st_mtime_ns == before
    for trial in ("none_seed0", "shift_seed0", "none_seed1", "shift_seed1"):
        assert logits(trials / trial) == logits(measured / "trials" / trial)


def test_failed_trial_does_not_stop_others(clip_folder: Path, tmp_path: Path) -> None:
    rows = {**ROWS, "broken": {"optim.groups": [{"match": "nothing.*", "lr": 0.1, "weight_decay": 0.0}]}}
    args = ladder(clip_folder, tmp_path, rows=rows, seeds=[3], repeat=None, jobs=2)
    with pytest.raises(
        RuntimeError,
        match=r"1 of 3 trials failed; the results of the others are kept:\n  broken, seed 3: .*nothing\.\*",
    ):
        main(args)
    actual = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert {row: own["seeds"] for row, own in actual["rows"].items()} == {"none": [3], "shift": [3], "broken": []}
    table = (tmp_path / "out" / "table.md").read_text()
    assert "**broken, seed 3 failed**: clipvid.InputError: optim.groups: no trained parameter matches" in table
    assert "2 of 3 trials" in table


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rows": ROWS | {"s": {"seed": 3}}}, r"row 's': every row is trained under all of seeds=\[0, 1\]; remove"),
        ({"rows": {"shift": {}}}, "rows: 'none', the reference of the others, is missing"),
        ({"repeat": "gta"}, "repeat: 'gta' is not a row; rows: none, shift"),
        ({"rows": ROWS | {"Shift!": {}}}, "rows: two of .* give the same folder"),
        ({"predictions": [PREDICTIONS[0] | {"row": "ila"}]}, "prediction 'ila on pairs .*': 'ila' is not a row"),
        (
            {"predictions": [PREDICTIONS[0] | {"under": "bag"}]},
            "trial.controls does not have 'bag', only reversed, single",
        ),
        (
            {"predictions": [PREDICTIONS[0] | {"measure": "depth"}]},
            "'depth' is not measured here, only top1, pairs",
        ),
        ({"rows": ROWS | {"x": {"model.adaptor": "ila"}}}, "adaptor"),
        ({"rows": ROWS | {"x": {"optim.lr": "0.001"}}}, "row 'x': optim.lr='0.001' is text; expected 0.001 without"),
        ({"rows": ROWS | {"x": {"training.epochs": "4"}}}, "row 'x': training.epochs='4' is text"),
        (
            {"rows": ROWS | {"x": {"model.num_frames": 2}}},
            r"'x' \(4, 2, 3, 64, 64\); compare other sizes in a separate ladder",
        ),
    ],
)
def test_invalid_ladder_is_refused_early(
    clip_folder: Path, tmp_path: Path, changed: dict, message: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises((ValueError, SystemExit)) as refused:
        main(ladder(clip_folder, tmp_path, **changed))
    output = f"{refused.value}{capsys.readouterr().err}"
    assert re.search(message, output), output
    assert not (tmp_path / "out").exists()


def two_rows(name: str) -> LadderConfig:
    """Return the config of a ladder with two of its rows, since each trial is parsed."""
    config = parse_config(LadderConfig, ["--config", str(REPOSITORY / f"configs/ladder/{name}.yaml")], "test")
    assert config.repeat is not None
    return replace(config, rows={row: config.rows[row] for row in ("none", config.repeat)}, predictions=[])


def test_trial_seed_draws_folds() -> None:
    config = two_rows("weizmann")
    trials = ladder_trials(config)
    assert len(trials) == len(config.rows) * len(config.seeds) + 1
    for trial in trials:
        assert trial.config.protocol["seed"] == trial.config.recipe.seed == trial.seed
    alone = replace(config, trial=replace(config.trial, protocol={"name": "leave_one_group_out"}))
    assert [trial.config.protocol["seed"] for trial in ladder_trials(alone)] == [trial.seed for trial in trials]


def test_trial_seed_draws_the_videos_of_holdout() -> None:
    config = two_rows("world")
    assert {trial.config.protocol for trial in ladder_trials(config)} == {"holdout"}
    few = replace(config, trial=replace(config.trial, protocol={"name": "holdout", "shots": 2}))
    for trial in ladder_trials(few):
        assert trial.config.protocol == {"name": "holdout", "shots": 2, "seed": trial.seed}


@pytest.mark.parametrize(
    ("name", "clips", "shots", "epochs", "more"),
    [
        ("weizmann_tower", "two", 2, 20, []),
        ("ucf101_mini_tower", "two", 2, 20, []),
        ("ucf101_mini_tower", "five_to_ten", 5, 10, []),
        ("ucf101_mini_tower", "five_to_ten", 10, 5, ["--trial.recipe.training.epochs", "5"]),
    ],
)
def test_config_of_few_clips_changes_protocol_epochs_and_predictions_only(name, clips, shots, epochs, more) -> None:
    """As `make real-video` calls it."""
    first = ["--config", str(REPOSITORY / f"configs/ladder/{name}.yaml")]
    whole = parse_config(LadderConfig, first, "test")
    folds = {"name": "leave_one_group_out", "folds": 2} if name == "weizmann_tower" else {"name": "holdout"}
    protocol = folds | {"shots": shots}
    few = parse_config(
        LadderConfig,
        [*first, "--config", str(REPOSITORY / f"configs/ladder/{clips}_clips.yaml"), "--output_dir", "few", *more]
        + (["--trial.protocol.shots", "2"] if "folds" in folds else [f"--trial.protocol={json.dumps(protocol)}"]),
        "test",
    )
    recipe = replace(whole.trial.recipe, training=replace(whole.trial.recipe.training, epochs=epochs))
    trial = replace(whole.trial, protocol=protocol, recipe=recipe)
    assert few == replace(whole, output_dir="few", trial=trial, predictions=few.predictions)
    assert {one.row for one in few.predictions} == set(few.rows) - {"none"}


def test_a_ladder_of_an_earlier_version_keeps_its_folders(tmp_path: Path) -> None:
    args = ["--config", str(REPOSITORY / "configs/ladder/world.yaml"), "--output_dir", str(tmp_path)]
    config = parse_config(LadderConfig, args, "test")
    assert {trial.folder.parent for trial in ladder_trials(config)} == {tmp_path / "trials"}
    (tmp_path / "cells").mkdir()
    assert {trial.folder.parent for trial in ladder_trials(config)} == {tmp_path / "cells"}


def test_measures() -> None:
    partners = {"partner": ["1", "0", "-1"], "pair": ["sideways", "sideways", "still"]}
    classes = [ClassInfo(i, str(i), {key: values[i] for key, values in partners.items()}) for i in range(3)]
    scores = torch.tensor([[0.2, 0.1, 0.7], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8], [0.0, 0.0, 0.0]])
    actual = measures(scores, torch.tensor([0, 1, 2, 0]), classes)
    assert list(actual) == ["top1", "pairs", "sideways"]
    assert actual["top1"][1].tolist() == [False, False, True, False]
    asked, right = actual["pairs"]
    assert asked.tolist() == [True, True, False, True]
    assert right[asked].tolist() == [True, False, False]
    assert list(measures(scores, torch.zeros(4, dtype=torch.long), [ClassInfo(0, "a")])) == ["top1"]


def test_interval_of_one_seed_is_nearly_wilson() -> None:
    right = np.array([[1.0] * 180 + [0.0] * 60])
    names = [str(i) for i in range(240)]
    actual, wilson = accuracy_over_seeds(right, names), binomtest(180, 240).proportion_ci(method="wilson")
    assert (actual["mean"], actual["std"], actual["count"]) == (0.75, None, 240)
    assert (actual["low"], actual["high"]) == pytest.approx((wilson.low, wilson.high), abs=0.002)
    whole = accuracy_over_seeds(np.ones((3, 240)), names)
    assert (whole["low"], whole["high"]) == pytest.approx(tuple(binomtest(240, 240).proportion_ci(method="wilson")))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_interval_contains_extreme_accuracies(share: float) -> None:
    for count in range(2, 300):
        actual = accuracy_over_seeds(np.full((3, count), share), [str(i) for i in range(count)])
        assert 0 <= actual["low"] <= actual["mean"] <= actual["high"] <= 1


def test_interval_is_continuous() -> None:
    """Components with less variance than noise cost no degrees of freedom."""
    names = [str(i) for i in range(240)]
    right = np.ones((3, 240))
    right[1, 7] = 0
    once = accuracy_over_seeds(right, names)["low"]
    right[:, [3, 50, 90, 200]] = 0
    assert accuracy_over_seeds(right, names)["low"] < once
    rng, wilson = np.random.default_rng(0), binomtest(168, 240).proportion_ci(method="wilson")
    drawn = [accuracy_over_seeds((rng.random((3, 240)) < 0.7).astype(float), names) for _ in range(100)]
    assert np.median([actual["high"] - actual["low"] for actual in drawn]) < 1.1 * (wilson.high - wilson.low)


@pytest.mark.parametrize(("between_seeds", "by_person"), [(0.0, False), (0.15, False), (0.0, True), (0.1, True)])
def test_interval_coverage(between_seeds: float, by_person: bool) -> None:
    """Simulations have a known accuracy: seeds, videos and optionally people shift a logit."""
    rng, covered, repeats = np.random.default_rng(0), 0, 400
    clusters = [str(i // 10 if by_person else i) for i in range(90)]
    truth = 0.7
    for _ in range(repeats):
        people = rng.normal(0, 0.1, 9).repeat(10) if by_person else rng.normal(0, 0.1, 90)
        chance = (truth + rng.normal(0, between_seeds, 3)[:, None] + people).clip(0, 1)
        actual = accuracy_over_seeds((rng.random((3, 90)) < chance).astype(float), clusters)
        covered += actual["low"] <= truth <= actual["high"]
    assert covered / repeats > 0.91


def test_differences_are_paired() -> None:
    rng = np.random.default_rng(1)
    hard = rng.random((2, 300)) < 0.5
    better = np.where(rng.random((2, 300)) < 0.1, 1.0, hard)
    names = [str(i) for i in range(300)]
    paired = difference_over_seeds(better, hard.astype(float), names)
    assert paired["mean"] == pytest.approx(better.mean() - hard.mean())
    alone = accuracy_over_seeds(better, names)
    assert paired["high"] - paired["low"] < 0.7 * (alone["high"] - alone["low"])
    assert mean_variance(np.zeros((2, 4)), list("abcd"))[0] == 0


def test_hypothesis_text() -> None:
    actual = Hypothesis("ila", "why", over="none", measure="pairs", at_least=0.3)
    assert str(actual) == "ila − none on pairs ≥ 0.3"
    assert (actual.judge(0.3), actual.judge(0.2)) == (True, False)
    assert Hypothesis("none", "why", at_most=0.5).judge(0.6) is False
    assert Hypothesis("none", "why").judge(0.6) is None
