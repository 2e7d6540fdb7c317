"""Peak memory of a process is its part alone, not that of the process that started it."""

import subprocess
import sys

import pytest

from clipvid.runs.memory import peak_resident_memory

CHILD = "from clipvid.runs.memory import peak_resident_memory; print(peak_resident_memory())"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_child_does_not_count_the_memory_of_its_parent() -> None:
    large = bytearray(400 * 2**20)
    large[::4096] = b"x" * len(range(0, len(large), 4096))
    child = int(subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True).stdout)
    assert peak_resident_memory() > 400 * 2**20
    assert child < 200 * 2**20


def test_peak_grows_with_what_is_held() -> None:
    before = peak_resident_memory()
    large = b"x" * (before + 2**26)
    assert peak_resident_memory() >= before + 2**25
    assert len(large) > before
