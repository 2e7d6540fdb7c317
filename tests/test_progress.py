"""Lines about the progress of a run."""

import pytest

from clipvid.runs.progress import Progress


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
