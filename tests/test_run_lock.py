"""The lock on an output folder."""

import json
import multiprocessing
import os
import platform
from pathlib import Path

import psutil
import pytest

from clipvid import RunError
from clipvid.runs.lock import NAME, locked

OWN = {"host": platform.node(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def hold(folder: Path, held, release) -> None:
    with locked(folder):
        held.set()
        release.wait(60)


def test_a_second_run_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    first = context.Process(target=hold, args=(tmp_path, held, release))
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


def test_a_lock_of_another_host_is_refused_with_the_file_to_delete(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(json.dumps(OWN | {"host": "elsewhere"}))
    with pytest.raises(RunError, match=rf"of elsewhere, .* delete .*{NAME}"), locked(tmp_path):
        pass
    assert (tmp_path / NAME).exists()


def test_the_lock_is_released_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
