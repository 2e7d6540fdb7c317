"""What the training loop costs."""

import pytest

import clipvid
from clipvid.benchmarks.overhead import loop_overhead


@pytest.mark.slow
def test_what_the_loop_costs() -> None:
    """Measured, and printed with `-s`; how much depends on the machine."""
    model = clipvid.create_model("tiny", adapter="ila", num_frames=8)
    found = loop_overhead(model)
    print(f"bare {found['bare_seconds']:.4f} s, loop {found['loop_seconds']:.4f} s: {found['overhead']:+.2%}")
    assert found["bare_seconds"] > 0
