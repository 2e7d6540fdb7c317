"""Encoded videos of a build that is not finished, one file each, which a killed run finds again."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from clipvid.data.reader import VideoError
from clipvid.files import replacing, write_json
from clipvid.inference.search.encoding import VideoFeatures
from clipvid.inference.search.settings import IndexSettings

_SETTINGS = "settings.json"


@dataclass(frozen=True)
class FileState:
    """File of a video. The state changes with its content.

    Attributes:
        name: Path below the folder of the videos, with `/` between its parts.
        path: Path of the file.
        size: Bytes.
        modified: Time of its last modification in nanoseconds.
    """

    name: str
    path: Path
    size: int
    modified: int

    @classmethod
    def read(cls, path: Path, folder: Path) -> FileState:
        """Return the state of a file below a folder.

        Raises:
            VideoError: The file has gone, or cannot be accessed.
        """
        try:
            facts = path.stat()
        except OSError as error:
            raise VideoError(str(path), error.strerror or str(error)) from None
        return cls(path.relative_to(folder).as_posix(), path, facts.st_size, facts.st_mtime_ns)


class UnfinishedVideos:
    """Features of videos that are not in the index yet.

    Args:
        folder: Folder of the files.
        settings: Settings of the index. Files under other settings are removed.
    """

    def __init__(self, folder: Path, settings: IndexSettings) -> None:
        self.folder, self.settings = folder, settings

    @staticmethod
    def is_present(folder: Path) -> bool:
        """Return True for a folder that this class has written."""
        return (folder / _SETTINGS).is_file()

    def open(self) -> None:
        """Create the folder, or keep its files if they have the same settings."""
        self.folder.mkdir(parents=True, exist_ok=True)
        record = {**asdict(self.settings), "model": None, "pretrained": None, "revision": None}
        try:
            stored = json.loads((self.folder / _SETTINGS).read_bytes())
        except (OSError, ValueError):
            stored = None
        if stored != record:
            self._clear()
            write_json(self.folder / _SETTINGS, record)

    def write(self, state: FileState, encoded: VideoFeatures) -> None:
        """Store the features of a video."""
        with replacing(self._path(state)) as aside, aside.open("wb") as file:
            facts = np.array([state.size, state.modified], dtype=np.int64)
            np.savez(file, facts=facts, times=encoded.times, features=encoded.features)

    def read(self, state: FileState) -> VideoFeatures | None:
        """Return the stored features of a video, or None if there are none for this state or the file is damaged."""
        path = self._path(state)
        try:
            with np.load(path, allow_pickle=False) as stored:
                facts, times, features = (stored[name] for name in ("facts", "times", "features"))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        if facts.tolist() != [state.size, state.modified]:
            return None
        return VideoFeatures(times, features)

    def remove(self) -> None:
        """Remove all files and the folder."""
        self._clear()
        with suppress(OSError):
            self.folder.rmdir()

    def _clear(self) -> None:
        for path in (self.folder / _SETTINGS, *self.folder.glob("*.np[yz]"), *self.folder.glob(".*.partial")):
            path.unlink(missing_ok=True)

    def _path(self, state: FileState) -> Path:
        return self.folder / f"{hashlib.sha256(os.fsencode(state.name)).hexdigest()[:32]}.npz"
