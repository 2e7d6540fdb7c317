"""Unreadable videos of a training run: looked for before its first step, counted at its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch.utils.data import DataLoader

from clipvid.data.broken import BadVideos
from clipvid.data.config import DataConfig
from clipvid.data.manifest import Manifest
from clipvid.data.precheck import find_unreadable
from clipvid.data.splits import BAD_VIDEOS


def check_readable(data: DataConfig, videos: Manifest, loader: DataLoader, accelerator: Accelerator) -> BadVideos:
    """Open up to `data.check_videos` videos, and return the record of unreadable ones that the loader continues.

    Nothing is written. All processes call it together.

    Raises:
        TooManyBadVideos: more of them cannot be read than the run allows.
    """
    bad: BadVideos = loader.bad_videos  # type: ignore[attr-defined]
    failures = []
    if accelerator.is_main_process:
        failures = find_unreadable(videos, data.check_videos, data.num_workers)
    bad.foresee(broadcast_object_list([failures])[0], quiet=not accelerator.is_main_process)
    return bad


def count_unreadable(accelerator: Accelerator, output: Path, records: Sequence[BadVideos]) -> dict[str, int]:
    """Return the number of unreadable videos of each split over all processes, and print it if there are any."""
    by_process = gather_object([{bad.split: list(bad.reasons) for bad in records}])
    counts = {bad.split: len({path for part in by_process for path in part[bad.split]}) for bad in records}
    parts = [f"{counts[bad.split]} of {bad.total} videos in {bad.split}" for bad in records if counts[bad.split]]
    if parts:
        accelerator.print(
            f"not readable: {' and '.join(parts)}. In training others took their place, in evaluation they count as "
            f"wrong -> {output / BAD_VIDEOS}"
        )
    return counts
