"""Unreadable videos of a training run: looked for before its first step, counted at its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader

from clipvid.data.broken import BadVideos, Failure
from clipvid.data.config import DataConfig
from clipvid.data.manifest import Manifest
from clipvid.data.precheck import open_videos, places_to_open
from clipvid.data.splits import BAD_VIDEOS
from clipvid.runs.progress import Remaining


class OpenedVideos:
    """Results of opening videos before training. Runs on the same videos share them, so that each is opened once."""

    def __init__(self) -> None:
        self._reasons: dict[tuple[str, str], str | None] = {}

    def check(self, data: DataConfig, videos: Manifest, loader: DataLoader, accelerator: Accelerator) -> BadVideos:
        """Open up to `data.check_videos` videos, and return the record of unreadable ones that the loader continues.

        Nothing is written. All processes call it together, and each opens its share.

        Raises:
            TooManyBadVideos: More of them cannot be read than the run allows.
        """
        bad: BadVideos = loader.bad_videos  # type: ignore[attr-defined]
        root = str(videos.root)
        opened = {place for place, path in enumerate(videos.paths()) if (root, path) in self._reasons}
        places = places_to_open(len(videos), data.check_videos, opened)
        own = places[accelerator.process_index :: accelerator.num_processes]
        show = Remaining(f"videos opened in {bad.split}") if accelerator.is_main_process else None
        results = []
        for done, failure in enumerate(open_videos(videos, own, data.num_workers), 1):
            results.append((videos.samples[own[done - 1]].path, failure and failure.reason))
            if show is not None:
                show(done, len(own))
        for path, reason in gather_object(results):
            self._reasons[root, path] = reason or self._reasons.get((root, path))
        reasons = ((path, self._reasons.get((root, path))) for path in videos.paths())
        failures = [Failure(path, reason) for path, reason in reasons if reason]
        bad.foresee(failures, quiet=not accelerator.is_main_process)
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
