"""Features of clips on disk: one memory-mapped file per clip, found by a key of all that its content depends on."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from clipvid.data.lists.samples import Stored
from clipvid.files import hash_key, replacing

SUFFIX = ".safetensors"


@dataclass
class FeatureStore:
    """Folder of features by key, at most `limit` bytes.

    Several processes and runs may share a folder: a file is whole or absent. The least recently used files make room
    for new ones. Files that were used since this store was opened stay. A set of clips larger than the limit therefore
    keeps the part that fits.

    Attributes:
        folder: Folder, created if it does not exist.
        limit: Size in bytes.
        full: True if a clip was not kept because of the limit.
    """

    folder: Path
    limit: int
    full: bool = field(default=False, init=False)
    # File systems may round times down.
    _opened: float = field(default_factory=lambda: time.time() - 1, init=False)
    _failed: bool = field(default=False, init=False)
    _size: int = field(default=0, init=False)
    _unlisted: float = field(default=math.inf, init=False)  # bytes written since the folder was listed

    def read(self, key: str) -> tuple[Tensor, dict[str, str]] | None:
        """Return features and facts under `key`; None if they are absent or damaged."""
        path = self._path(key)
        try:
            with safe_open(path, "pt") as file:
                features, facts = file.get_tensor("features"), dict(file.metadata() or {})
        except (SafetensorError, OSError):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # the time of last use
        return features, facts

    def write(self, key: str, features: Tensor, facts: dict[str, str] | None = None) -> bool:
        """Keep features and facts under `key`. Return False if the limit does not allow it."""
        needed = features.nbytes + 4096
        if self._failed or not self._make_room(needed):
            self.full = True
            return False
        try:
            with replacing(self._path(key)) as aside:
                save_file({"features": features.detach().cpu().contiguous()}, aside, metadata=facts)
        except (OSError, SafetensorError) as error:
            print(
                f"features cannot be stored in {self.folder} ({error}); those that are there are used", file=sys.stderr
            )
            self.full = self._failed = True
            return False
        self._size, self._unlisted = self._size + needed, self._unlisted + needed
        return True

    def size(self) -> int:
        """Return the bytes of all files."""
        return sum(size for _, size, _ in self._files())

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}{SUFFIX}"

    def _files(self) -> list[tuple[float, int, Path]]:
        """Return time of last use, size and path of all files."""
        files = []
        for path in self.folder.glob(f"*/*{SUFFIX}"):
            with contextlib.suppress(OSError):  # another process may remove it
                facts = path.stat()
                files.append((facts.st_mtime, facts.st_size, path))
        return files

    def _remove_partial_files(self) -> None:
        """Remove what killed processes have left. A file takes far less than an hour to write."""
        for path in self.folder.glob("*/.*.partial"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < time.time() - 3600:
                    path.unlink()

    def _make_room(self, needed: int) -> bool:
        if self._unlisted > self.limit / 20:  # other processes write too
            self._remove_partial_files()
            self._size, self._unlisted = self.size(), 0
        if self._size + needed <= self.limit:
            return True
        if self.full:
            return False
        files = sorted(self._files())
        self._size = sum(size for _, size, _ in files)
        # Room for many more clips, so that the folder is not listed for each of them.
        target = self.limit - max(needed, self.limit // 20)
        for used, size, path in files:
            if self._size <= target or used >= self._opened:
                break
            path.unlink(missing_ok=True)
            self._size -= size
        return self._size + needed <= self.limit


@dataclass(frozen=True)
class StoredFeatures:
    """Features of the clips that one data set makes.

    Attributes:
        store: Folder of the features.
        recipe: Hash of everything that all clips share, such as weights, sampling and augmentation.
    """

    store: FeatureStore
    recipe: str

    def key(self, source: str | bytes | Path | Stored, *parts: Any) -> str | None:
        """Return the key of a clip of a video; None if its features cannot be kept.

        Args:
            source: path or bytes of the video.
            parts: what else makes the clip: its part of the video, the key of its random draws.
        """
        identity = video_identity(source)
        return None if identity is None else hash_key(self.recipe, identity, *parts)


def video_identity(source: str | bytes | Path | Stored) -> list[Any] | None:
    """Return what changes when the content of a video changes; None if that cannot be known.

    For a file these are its real path, size and times, for a folder of frames those of its files, and for bytes their
    hash. A video inside a file adds its position. Videos elsewhere have no identity.
    """
    if isinstance(source, Stored):
        if "://" in source.file:
            return None
        container = video_identity(source.file)
        return None if container is None else [*container, source.offset, source.size]
    if isinstance(source, bytes):
        return [hashlib.sha256(source).hexdigest()]
    path = Path(source)
    try:
        path = path.resolve(strict=True)
        files = [(file.name, file.stat()) for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    except OSError:
        return None
    return [str(path), [(name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in files]]
