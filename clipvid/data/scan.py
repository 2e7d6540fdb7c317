"""Check of every video of a list or folder, several at a time."""

from __future__ import annotations

import csv
import os
from collections.abc import Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch

from clipvid.data.config import CheckVideosConfig
from clipvid.data.lists.classes import ClassList
from clipvid.data.lists.sources import ListSource, Source, find_videos, resolve_source, text_batch
from clipvid.data.lists.tables import Batches, write_without
from clipvid.data.manifest import Manifest, ManifestError
from clipvid.data.reader import open_video
from clipvid.data.sampling import uniform_indices
from clipvid.decoding.errors import VideoError
from clipvid.files import replacing


def check_all(manifest: Manifest, num_frames: int, num_workers: int | None = None) -> Iterator[tuple[int, str | None]]:
    """Yield (index, None or the reason why it cannot be read) of every video, in any order.

    A video whose decoder crashes its process is identified, and the others are still checked.
    """
    workers = num_workers or os.cpu_count() or 1
    waiting = iter(range(len(manifest)))
    suspects: list[int] = []
    while True:
        flying: dict[Future[str | None], int] = {}
        try:
            with ProcessPoolExecutor(workers, initializer=_start, initargs=(manifest, num_frames)) as pool:
                for index in waiting:
                    try:
                        flying[pool.submit(_check, index)] = index
                    except BrokenProcessPool:
                        suspects.append(index)
                        raise
                    while len(flying) >= 4 * workers:
                        yield from _landed(flying)
                while flying:
                    yield from _landed(flying)
            break
        except BrokenProcessPool:
            suspects += flying.values()
    for index in suspects:
        with ProcessPoolExecutor(1, initializer=_start, initargs=(manifest, num_frames)) as pool:
            try:
                yield index, pool.submit(_check, index).result()
            except BrokenProcessPool:
                yield index, "its decoder crashes the process"


def _landed(flying: dict[Future[str | None], int]) -> Iterator[tuple[int, str | None]]:
    for future in wait(flying, return_when=FIRST_COMPLETED).done:
        reason = future.result()
        yield flying.pop(future), reason


_checked: tuple[Manifest, int]


def _start(manifest: Manifest, num_frames: int) -> None:
    global _checked
    torch.set_num_threads(1)
    _checked = manifest, num_frames


def _check(index: int) -> str | None:
    manifest, num_frames = _checked
    sample = manifest.samples[index]
    try:
        source = manifest.video(index)
    except (OSError, ValueError, RuntimeError) as error:
        return f"it cannot be downloaded ({error})"
    try:
        with open_video(source) as video:
            part = video.frames_between(sample.start, sample.end)
            if num_frames:
                video.read(part.start + uniform_indices(len(part), min(num_frames, len(part))))
            else:
                for start in range(part.start, part.stop, 64):
                    video.read(range(start, min(start + 64, part.stop)))
    except VideoError as error:
        return error.reason or str(error)
    return None


class AnyClass(ClassList):
    """Class list that accepts every label."""

    def __init__(self) -> None:
        super().__init__(())

    def id_of(self, label: str) -> int:
        """Return 0 for any label."""
        return 0


@dataclass(frozen=True)
class EveryVideo:
    """Source of all videos below a folder. The label is the first folder of the path."""

    title: str

    def batches(self, root: Path, names: Collection[str]) -> Batches:
        """Yield one batch of all videos.

        Raises:
            ManifestError: There are no videos.
        """
        paths = [video.relative_to(root) for video in find_videos(root)]
        if not paths:
            raise ManifestError(f"no video in or below {root}")
        yield text_batch([(path.as_posix(), path.parts[0] if len(path.parts) > 1 else "none") for path in paths])


def _source(config: CheckVideosConfig) -> tuple[Path, Source]:
    """Return the root of the videos, and their source."""
    path = Path(config.path)
    if config.root is None and path.is_dir():
        return path, EveryVideo(config.path)
    root = path.parent if config.root is None else Path(config.root)
    spec = str(path.absolute()) if path.exists() else config.path
    return root, resolve_source(spec, root)


def _write_fixed(source: ListSource | EveryVideo, root: Path, dropped: Collection[int]) -> Path:
    """Write a list without the entries at the lines `dropped`."""
    if isinstance(source, ListSource):
        file = root / source.file
        target = file.with_name(f"{file.stem}.fixed{file.suffix}")
        write_without(file, dropped, target)
        return target
    target = root / "manifest.fixed.csv"
    with replacing(target) as aside, aside.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(("path", "label"))
        for batch in source.batches(root, ()):
            rows = zip(*(batch[name].to_pylist() for name in ("path", "label", "line")), strict=True)
            writer.writerows((path, label) for path, label, line in rows if line not in dropped)
    return target
