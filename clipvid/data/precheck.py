"""A look at videos before training: some or all are opened, and their first frame is decoded."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from clipvid.data.broken import Failure
from clipvid.data.lists.samples import Stored
from clipvid.data.manifest import Manifest
from clipvid.data.reader import VideoError, open_video


def find_unreadable(manifest: Manifest, most: int, threads: int) -> list[Failure]:
    """Return the videos that cannot be opened.

    Args:
        manifest: the videos. Addresses on the network and items of Datasets are left out.
        most: videos to open, spread evenly over the manifest if it has more.
        threads: videos to open at a time.
    """
    count = min(most, len(manifest))
    if count == 0:
        return []
    chosen = [place * len(manifest) // count for place in range(count)]
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        found = pool.map(lambda index: _failure(manifest, index), chosen)
        return [failure for failure in found if failure is not None]


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
