"""Trackers of a run: early refusal, and their files in one place."""

from pathlib import Path

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from clipvid import InputError, RunError
from clipvid.training import build
from clipvid.training.build import build_accelerator
from clipvid.training.config import TrainingConfig
from clipvid.training.session import end_trackers, start_trackers


@pytest.mark.parametrize("name", sorted(LOGGER_TYPE_TO_CLASS))
def test_a_tracker_without_its_package_is_refused(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(build, "get_available_trackers", list)
    with pytest.raises(InputError, match=rf"training\.report_to={name}: .*pip install {name}"):
        build_accelerator(TrainingConfig(report_to=name), str(tmp_path))


def test_unknown_tracker_error_lists_known_trackers(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"training\.report_to=wand: expected one of .*tensorboard.*wandb"):
        build_accelerator(TrainingConfig(report_to="wand"), str(tmp_path))


def test_tensorboard_writes_to_logs(tmp_path: Path) -> None:
    accelerator = build_accelerator(TrainingConfig(), str(tmp_path))
    start_trackers(accelerator)
    accelerator.log({"loss": 1.0}, step=1)
    end_trackers(accelerator)
    (events,) = tmp_path.rglob("events.out.*")
    assert events.parent == tmp_path / "logs"


def test_failed_tracker_start_is_one_line(tmp_path: Path, monkeypatch) -> None:
    accelerator = build_accelerator(TrainingConfig(), str(tmp_path))

    def refuse(*args, **options):
        raise KeyError("no login")

    monkeypatch.setattr(accelerator, "init_trackers", refuse)
    with pytest.raises(RunError, match=r"training\.report_to: the tracker cannot start .*no login"):
        start_trackers(accelerator)
