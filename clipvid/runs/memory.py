"""Memory use of this process."""

from __future__ import annotations

import sys


def peak_resident_memory() -> int:
    """Return the peak resident memory of this process in bytes."""
    if sys.platform == "win32":  # without the module resource
        import psutil

        peak: int = psutil.Process().memory_info().peak_wset
        return peak
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
