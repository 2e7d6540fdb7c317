"""A look at videos before training: some or all are opened, and their first frame is decoded."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from clipvid.data.broken import Failure
from clipvid.data.lists.samples import Stored
from clipvid.data.manifest import Manifest
from clipvid.data.reader import VideoError, open_video


def places_to_open(total: int, most: int, opened: Collection[int] = ()) -> Sequence[int]:
    """Return the videos to open, spread evenly over those that are not opened yet.

    Args:
        total: Number of videos.
        most: Videos to open, including opened ones.
        opened: Places of opened videos.
    """
    left = [place for place in range(total) if place not in opened] if opened else range(total)
    count = max(min(most, total) - len(opened), 0)
    return [left[number * len(left) // count] for number in range(count)]


def open_videos(manifest: Manifest, places: Sequence[int], threads: int) -> Iterator[Failure | None]:
    """Open videos and yield the failure of each, or None, in order. Remote videos and items of Datasets are skipped."""
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        yield from pool.map(lambda place: _failure(manifest, place), places)


def _failure(manifest: Manifest, index: int) -> Failure | None:
    sample = manifest.samples[index]
    is_remote = isinstance(sample.media, Stored) and "://" in sample.media.file
    if sample.item is not None or is_remote:
        return None
    try:
        with open_video(manifest.video(index)) as video:
            video.read([video.frames_between(sample.start, sample.end).start])
    except VideoError as error:
        return Failure(sample.path, error.reason or str(error))
    except (OSError, ValueError, RuntimeError) as error:
        return Failure(sample.path, f"it cannot be fetched ({error})")
    return None
