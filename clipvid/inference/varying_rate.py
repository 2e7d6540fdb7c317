"""Warning about videos whose frame rate varies."""

from __future__ import annotations

import warnings


def warn_of_varying_rate(name: str) -> None:
    """Warn that the frames of a video are sampled by number although its frame rate varies."""
    warnings.warn(
        f"{name}: its frame rate varies by more than 2x, and frames are sampled evenly by number, "
        "not by time; a timeline (--timeline) samples by time, and so does a model that was trained with "
        "data.sampling='{name: uniform, by: time}'",
        stacklevel=3,
    )
