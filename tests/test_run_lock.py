"""Lock on an output folder."""

import json
import os
import platform
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import psutil
import pytest
from processes import SERVER

from clipvid import RunError
from clipvid.data.manifest import Manifest
from clipvid.experiments.config import EvaluateConfig, GridConfig
from clipvid.experiments.grid import Grid
from clipvid.experiments.run import Recipe
from clipvid.experiments.trial import Trial
from clipvid.runs import lock
from clipvid.runs.lock import NAME, locked

OWN = {"host": platform.node(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def hold(folder: Path, held, release) -> None:
    with locked(folder):
        held.set()
        release.wait(60)


def test_a_second_run_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    held, release = SERVER.Event(), SERVER.Event()
    first = SERVER.Process(target=hold, args=(tmp_path, held, release))
    first.start()
    try:
        assert held.wait(120)
        with (
            pytest.raises(RunError, match=f"is in use by process {first.pid} of .*another output_dir"),
            locked(tmp_path),
        ):
            pass
    finally:
        first.kill()
        first.join()
    assert (tmp_path / NAME).exists()
    with locked(tmp_path):
        assert json.loads((tmp_path / NAME).read_text()) == OWN
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "left",
    [
        "",
        "{",
        "null",
        "[]",
        json.dumps({"host": 1}),
        json.dumps(OWN | {"started": 1.0}),
        json.dumps(OWN | {"pid": 2**22 + 1}),
    ],
    ids=["empty", "cut_off", "null", "list", "wrong_type", "reused_pid", "dead_pid"],
)
def test_a_lock_left_by_a_crash_is_replaced(tmp_path: Path, left: str) -> None:
    (tmp_path / NAME).write_text(left)
    with locked(tmp_path):
        assert json.loads((tmp_path / NAME).read_text()) == OWN
    assert list(tmp_path.iterdir()) == []


def test_lock_of_another_host_is_refused(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(json.dumps(OWN | {"host": "elsewhere"}))
    with pytest.raises(RunError, match=rf"of elsewhere, .* delete .*{NAME}"), locked(tmp_path):
        pass
    assert (tmp_path / NAME).exists()


def test_old_lock_of_another_host_is_replaced(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(json.dumps(OWN | {"host": "elsewhere"}))
    last = time.time() - lock.SECONDS_TO_LIVE - 1
    os.utime(tmp_path / NAME, (last, last))
    with locked(tmp_path):
        assert json.loads((tmp_path / NAME).read_text()) == OWN
    assert list(tmp_path.iterdir()) == []


def test_old_lock_of_living_process_is_kept(tmp_path: Path) -> None:
    with locked(tmp_path):
        os.utime(tmp_path / NAME, (0, 0))
        with pytest.raises(RunError, match="in use by process"), locked(tmp_path):
            pass


def test_the_owner_keeps_its_lock_fresh_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT", 0.01)
    path = tmp_path / NAME
    with locked(tmp_path):
        os.utime(path, (0, 0))
        while path.stat().st_mtime == 0:  # the time limit of the test ends it
            time.sleep(0.01)
        path.write_text(json.dumps(OWN | {"host": "elsewhere"}))
        time.sleep(0.1)
        os.utime(path, (0, 0))
        time.sleep(0.2)
        assert path.stat().st_mtime == 0
    assert json.loads(path.read_text())["host"] == "elsewhere"


def trial(folder: Path) -> Trial:
    return Trial("a", EvaluateConfig(output_dir=str(folder / "a")))


def hold_and_run(folder: Path, command: Callable[[], None]) -> None:
    """Run a command while its output folder is in use."""
    with locked(folder):
        before = {path.name for path in folder.iterdir()}
        with pytest.raises(RunError, match=f"{folder.name} is in use by process"):
            command()
        assert {path.name for path in folder.iterdir()} == before


@pytest.mark.parametrize("subject", ["adapters", "data", "tuning", "pretraining"])
def test_a_benchmark_in_a_folder_in_use_is_refused(tmp_path: Path, subject: str) -> None:
    module = import_module(f"clipvid.benchmarks.{subject}")
    hold_and_run(tmp_path, lambda: module.main([f"--output_dir={tmp_path}"]))


def test_a_ladder_in_a_folder_in_use_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clipvid.benchmarks import ladder

    config = ladder.LadderConfig(output_dir=str(tmp_path), trial=EvaluateConfig(recipe=Recipe()), rows={"none": {}})
    monkeypatch.setattr(ladder, "parse_config", lambda *args: config)
    monkeypatch.setattr(ladder, "ladder_trials", lambda config: [trial(tmp_path)])
    monkeypatch.setattr(ladder, "tested_videos", lambda config: Manifest((), (), tmp_path))
    hold_and_run(tmp_path, lambda: ladder.main([]))


@pytest.mark.parametrize("jobs", [None, 1])
def test_a_grid_in_a_folder_in_use_is_refused(tmp_path: Path, jobs: int | None) -> None:
    grid = Grid([trial(tmp_path)], GridConfig(output_dir=str(tmp_path), jobs=jobs))

    def run() -> None:
        with grid.locked():
            pass

    hold_and_run(tmp_path, run)
    run()


def test_the_lock_is_released_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
