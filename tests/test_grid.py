"""Runner of grids: order, failures, refusals and resume, in this process and in others."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from accelerate import Accelerator

from clipvid import InputError, RunError
from clipvid.experiments.config import EvaluateConfig, GridConfig
from clipvid.experiments.grid import Grid
from clipvid.experiments.trial import Trial
from clipvid.files import write_json
from clipvid.runs.config_files import config_record
from clipvid.runs.output_folder import prepare_output_dir


@dataclass(frozen=True)
class Stub(Trial):
    """Trial that counts its runs, or fails. `data` is the hash of its inputs."""

    error: str | None = None
    data: str = "same"

    def run(self, accelerator: Accelerator) -> None:
        prepare_output_dir(self.folder, self.config)
        if self.error is not None:
            raise KeyError(self.error)
        with (self.folder / "runs").open("a") as file:
            file.write("x")
        session = {"wall_seconds": 2.0, "peak_memory_bytes": 5}
        write_json(self.folder / "run.json", {"manifests": self.inputs(), "sessions": [session]})
        write_json(self.folder / "metrics.json", {"config": config_record(self.config)})

    def inputs(self) -> dict[str, str]:
        return {"val": self.data}


def stub(root: Path, name: str, after: Sequence[str] = (), alpha: float = 1.0, **changed: str) -> Stub:
    return Stub(name, EvaluateConfig(output_dir=str(root / name), alpha=alpha), tuple(after), **changed)


def run(root: Path, trials: Sequence[Trial], jobs: int | None = None) -> list[int]:
    """Run a grid and return the number of finished trials at each report."""
    grid = Grid(trials, GridConfig(output_dir=str(root), jobs=jobs))
    counts: list[int] = []
    grid.run(lambda: counts.append(len(grid.results)))
    return counts


@pytest.mark.parametrize("jobs", [None, 2])
def test_failure_stops_only_dependent_trials(tmp_path: Path, jobs: int | None) -> None:
    trials = [stub(tmp_path, "bad", error="broken"), stub(tmp_path, "next", ["bad"]), stub(tmp_path, "last", ["next"])]
    trials += [stub(tmp_path, "good"), stub(tmp_path, "better", ["good"])]
    with pytest.raises(RunError, match=r"3 of 5 trials failed.*\n  bad: (?s:.*)broken(?s:.*)next: bad failed\n  last"):
        run(tmp_path, trials, jobs)
    records = {each["name"]: each for each in json.loads((tmp_path / "trials.json").read_text())}
    states = {name: record["state"] for name, record in records.items()}
    assert states == {"bad": "failed", "next": "failed", "last": "failed", "good": "finished", "better": "finished"}
    assert (records["good"]["seconds"], records["good"]["peak_memory_bytes"]) == (2.0, 5)
    assert not (tmp_path / "next").exists()


@pytest.mark.parametrize("jobs", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_finished_trials_are_kept_and_new_ones_run(tmp_path: Path, jobs: int | None) -> None:
    assert run(tmp_path, [stub(tmp_path, "a")], jobs) == [0, 1]
    assert run(tmp_path, [stub(tmp_path, "a"), stub(tmp_path, "b")], jobs) == [1, 2]
    assert [(tmp_path / name / "runs").read_text() for name in "ab"] == ["x", "x"]


def test_trial_with_changed_inputs_runs_again(tmp_path: Path) -> None:
    run(tmp_path, [stub(tmp_path, "a"), stub(tmp_path, "b", ["a"]), stub(tmp_path, "c")])
    assert run(tmp_path, [stub(tmp_path, "a", data="new"), stub(tmp_path, "b", ["a"]), stub(tmp_path, "c")]) == [
        1,
        2,
        3,
    ]
    assert [(tmp_path / name / "runs").read_text() for name in "abc"] == ["xx", "xx", "x"]


def test_folder_of_another_config_is_refused_early(tmp_path: Path) -> None:
    run(tmp_path, [stub(tmp_path, "a")])
    with pytest.raises(FileExistsError, match=r"a contains a run with another config \(alpha differ\)"):
        Grid([stub(tmp_path, "new"), stub(tmp_path, "a", alpha=0.5)], GridConfig(output_dir=str(tmp_path)))
    assert not (tmp_path / "new").exists()


def test_a_grid_that_cannot_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = GridConfig(output_dir=str(tmp_path))
    with pytest.raises(InputError, match="the same name 'a'"):
        Grid([stub(tmp_path, "a"), stub(tmp_path, "a")], config)
    with pytest.raises(InputError, match="jobs=0 must be at least 1"):
        GridConfig(jobs=0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"jobs=1: .*accelerate launch"):
        Grid([stub(tmp_path, "a")], GridConfig(output_dir=str(tmp_path), jobs=1))
