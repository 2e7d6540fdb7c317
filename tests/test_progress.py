"""Lines about the progress of a run."""

import pytest

from clipvid.runs import progress as module
from clipvid.runs.progress import Progress, Remaining


@pytest.mark.parametrize(
    ("entry", "expected"), [(None, "step 3/40: "), ({"loss": 1.0, "clips_per_second": 2.0}, "step 3/40: loss 1.000, ")]
)
def test_a_line_without_figures_shows_no_empty_loss(capsys, entry: dict | None, expected: str) -> None:
    with Progress(40, 0, True) as progress:
        if entry:
            progress.show(entry)
        progress.advance(3)
    line = capsys.readouterr().err
    assert line.startswith(expected)
    assert ": ," not in line


def test_time_left_is_shown_after_the_first_second(capsys, monkeypatch) -> None:
    clock = iter([0.0, 0.5, 1.2, 3.0, 22.0, 40.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    show = Remaining("windows")
    for done in (8, 16, 24, 32, 40):
        show(done, 40)
    assert capsys.readouterr().err.splitlines() == ["16 of 40 windows, 2 s left", "32 of 40 windows, 6 s left"]
