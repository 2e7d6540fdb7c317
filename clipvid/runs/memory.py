"""Memory use of this process."""

from __future__ import annotations

import re
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_resident_memory() -> int:
    """Return the peak resident memory of this process in bytes."""
    if sys.platform == "win32":  # without the module resource
        import psutil

        peak: int = psutil.Process().memory_info().peak_wset
        return peak
    # The maximum of getrusage begins with that of the parent process, which started this one.
    line = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text()) if _STATUS.is_file() else None
    if line is not None:
        return int(line[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
