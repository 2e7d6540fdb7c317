"""Videos that are in two splits: found by the files that they are, whatever names them, or by their bytes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeAlias

from clipvid.data.lists.samples import ManifestError, Rows, Sample, Stored
from clipvid.data.manifest import Manifest
from clipvid.decoding.frames import is_image
from clipvid.files import check_regular, hash_file

LeakCheck: TypeAlias = Literal["path", "content", "none"]
_SHOWN = 3
_THREADS = 4  # hashing waits for the disk


def check_splits(first: Manifest, second: Manifest, by: LeakCheck = "path", *, follow_links: bool = True) -> None:
    """Refuse videos that are in both manifests, whichever part of them.

    Args:
        first: for example the training videos.
        second: for example the videos of the evaluation.
        by: `path` finds files that are the same, through links and whatever kind of source names them; of videos
            inside of other files, their place in the file. `content` finds equal bytes too: files of equal size are
            read and hashed. `none` finds nothing.
        follow_links: look up the files. If False, `path` compares paths as they are written.

    Raises:
        ManifestError: names some of the videos.
    """
    if by == "none":
        return
    smaller, larger = sorted((first, second), key=len)
    pairs = _same_places(smaller, larger, follow_links)
    if not pairs and by == "content":
        pairs = _same_contents(smaller, larger)
    if pairs:
        shown = [name if name == other else f"{name} = {other}" for name, other in pairs[:_SHOWN]]
        raise ManifestError(
            f"{len(pairs)} videos are in both lists, such as {shown}; drop them from one (data.check_leaks=none allows "
            "them)"
        )


def _same_places(smaller: Manifest, larger: Manifest, follow_links: bool) -> list[tuple[str, str]]:
    """Return the names in both manifests of each video that is the same file, or at the same place of one."""
    place = _file_identity if follow_links else os.path.normpath
    seen = {key: name for name, key in _places(smaller, place)}
    both = {key: (seen[key], name) for name, key in _places(larger, place) if key in seen}
    return sorted(both.values())


def _places(manifest: Manifest, place: Callable[[str], Hashable]) -> Iterator[tuple[str, Hashable]]:
    """Yield the name of each sample, and what is equal for the same video."""
    samples = manifest.samples
    root = os.path.abspath(manifest.root)
    if isinstance(samples, Rows) and samples.media is None and "file" not in samples.table.column_names:
        yield from ((path, place(os.path.join(root, path))) for path in manifest.paths())
        return
    for sample in samples:
        stored = sample.media
        if isinstance(stored, Stored):
            file = stored.file if "://" in stored.file else place(os.path.join(root, stored.file))
            yield sample.path, file if stored.offset is None else (file, stored.offset)
        elif sample.media is None and sample.item is None:
            yield sample.path, place(os.path.join(root, sample.path))
        else:
            yield sample.path, sample.path  # videos in memory, or in a data set


def _file_identity(path: str) -> Hashable:
    """Return what all names of a file share: hard links, symbolic links, other letter case. Else the path itself."""
    try:
        facts = os.stat(os.path.normpath(path))
    except (OSError, ValueError):
        return os.path.normpath(path)
    return (facts.st_dev, facts.st_ino) if facts.st_ino else os.path.realpath(path)


def _same_contents(smaller: Manifest, larger: Manifest) -> list[tuple[str, str]]:
    """Return the names in both manifests of each video with the same bytes."""
    sizes = [[_size(manifest, sample) for sample in manifest.samples] for manifest in (smaller, larger)]
    unsized = any(None in row for row in sizes)
    common = set(sizes[0]) & set(sizes[1])
    seen: dict[str, str] = {}
    both = {}
    for manifest, row in zip((smaller, larger), sizes, strict=True):
        chosen = [sample for sample, size in zip(manifest.samples, row, strict=True) if unsized or size in common]
        with ThreadPoolExecutor(_THREADS) as pool:
            digests = pool.map(lambda sample, of=manifest: _digest(of, sample), chosen)  # type: ignore[misc]
            for sample, digest in zip(chosen, digests, strict=True):
                if digest is not None and manifest is smaller:
                    seen.setdefault(digest, sample.path)
                elif digest in seen:
                    both[digest] = (seen[digest], sample.path)
    return sorted(both.values())


def _size(manifest: Manifest, sample: Sample) -> int | None:
    """Return the number of bytes of a video without reading it; None if it is unknown, -1 if the file is missing."""
    if isinstance(sample.media, Stored):
        if sample.media.size is not None:
            return sample.media.size
        file = sample.media.file
    elif sample.media is None and sample.item is None:
        file = str(manifest.file(sample))
    else:
        return None
    try:
        return sum(os.path.getsize(part) for part in _files(Path(file)))
    except (OSError, ValueError):
        return None if "://" in file else -1


def _digest(manifest: Manifest, sample: Sample) -> str | None:
    """Return the hash of a video: of its bytes, of the images of a folder, or of frames. None if it cannot be read."""
    digest = hashlib.sha256()
    if sample.item is not None:
        digest.update(sample.item()[0].numpy().tobytes())
        return f"frames {digest.hexdigest()}"
    try:
        video = manifest.file(sample) if sample.media is None else sample.media()
        if isinstance(video, bytes):
            return hashlib.sha256(video).hexdigest()
        if not Path(video).is_dir():
            return hash_file(*_files(Path(video)))
        for file in _files(Path(video)):
            digest.update(hash_file(file).encode())
    except (OSError, ValueError, RuntimeError):
        return None
    return f"folder {digest.hexdigest()}"


def _files(video: Path) -> list[Path]:
    """Return the file of a video, or the images of a folder in the order of their names."""
    if not video.is_dir():
        check_regular(video, "video")  # a pipe would block
        return [video]
    return sorted(path for path in video.iterdir() if is_image(path))
