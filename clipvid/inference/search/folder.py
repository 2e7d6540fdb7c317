"""Files of an index: features and times of all windows as arrays, and `index.json`, which is replaced last.

The arrays are named after their content. A reader of an older `index.json` therefore never sees newer arrays.

Shapes: W windows, E embedding.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, get_type_hints

import numpy as np

from clipvid import InputError
from clipvid.files import check_regular, flush_folder, hash_file, one_line, write_json
from clipvid.inference.search.settings import IndexSettings

INDEX, PARTIAL, FORMAT = "index.json", "encoded", 1
_ARRAY = re.compile(r"(features|times)-([0-9a-f]{16})\.npy")
_RECORD = {"format", "settings", "features", "times", "videos"}
_START_OVER = "delete the folder and run clipvid index again"
RecordT = TypeVar("RecordT")


@dataclass(frozen=True)
class IndexedVideo:
    """File of an index.

    Attributes:
        name: Path below the folder of the videos, with `/` between its parts.
        size: Bytes.
        modified: Time of its last modification in nanoseconds.
        windows: Number of its windows.
    """

    name: str
    size: int
    modified: int
    windows: int


@dataclass(frozen=True)
class StoredArray:
    """Array file of an index by name, with its SHA-256."""

    name: str
    sha256: str


@dataclass(frozen=True)
class IndexRecord:
    """Content of `index.json`. The windows are those of the videos, in their order."""

    settings: IndexSettings
    features: StoredArray
    times: StoredArray
    videos: list[IndexedVideo]


def read_record(folder: Path) -> IndexRecord:
    """Read and check `index.json`.

    Raises:
        InputError: The folder is not an index, or its record is damaged.
    """
    path = folder / INDEX
    if not folder.is_dir():
        kind = "a file" if folder.exists() else "not a folder that exists"
        raise InputError(f"{folder} is {kind}; expected the folder of an index, made by clipvid index")
    if not path.exists():
        raise InputError(f"{folder} is not an index: it has no {INDEX}; make one by clipvid index FOLDER --model M")
    check_regular(path, "record of an index")
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT:
            raise InputError(
                f"{path} has the format {one_line(repr(content['format']), 40)}, and this version of clipvid reads "
                f"{FORMAT}; {_START_OVER}"
            )
        if content.keys() != _RECORD:
            raise ValueError(f"its keys are {sorted(content)}")
        settings = _typed(IndexSettings, content["settings"])
        features, times = (_checked_array(_typed(StoredArray, content[kind]), kind) for kind in ("features", "times"))
        return IndexRecord(settings, features, times, [_checked_video(each) for each in content["videos"]])
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({one_line(error, 120)}); {_START_OVER}") from None


def open_arrays(folder: Path, record: IndexRecord) -> tuple[np.ndarray, np.ndarray]:
    """Return the features float16 [W, E], mapped into memory, and the times float64 [W, 2].

    Raises:
        InputError: A file is missing, was cut, or does not fit the record.
    """
    count = sum(video.windows for video in record.videos)
    arrays = []
    for stored, kind in ((record.features, "<f2"), (record.times, "<f8")):
        path = folder / stored.name
        try:
            check_regular(path, "array of an index")
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError, SyntaxError) as error:
            raise InputError(f"{path} is damaged ({one_line(error, 120)}); {_START_OVER}") from None
        if array.dtype != np.dtype(kind) or array.ndim != 2 or len(array) != count or 0 in array.shape:
            raise InputError(
                f"{path} is damaged: it has {array.dtype} {list(array.shape)}, expected {np.dtype(kind)} with {count} "
                f"rows; {_START_OVER}"
            )
        arrays.append(array)
    features, times = arrays
    times = np.array(times)
    if times.shape[1] != 2 or not (np.isfinite(times).all() and (times[:, 0] <= times[:, 1]).all()):
        raise InputError(f"{folder / record.times.name} is damaged: its times are not in order; {_START_OVER}")
    return features, times


def check_hashes(folder: Path, record: IndexRecord) -> None:
    """Raise InputError if an array has changed since it was written."""
    for stored in (record.features, record.times):
        if hash_file(folder / stored.name) != stored.sha256:
            raise InputError(f"{folder / stored.name} is damaged: its SHA-256 differs; {_START_OVER}")


def write_index(
    folder: Path,
    settings: IndexSettings,
    videos: list[IndexedVideo],
    features: Iterable[np.ndarray],
    times: Iterable[np.ndarray],
    width: int,
) -> IndexRecord:
    """Write the arrays, then replace `index.json`, then remove older arrays.

    Args:
        folder: The index.
        settings: Its settings.
        videos: All videos, in order.
        features: float16 [?, E] in parts, in the order of the videos.
        times: float64 [?, 2] in parts.
        width: E.
    """
    count = sum(video.windows for video in videos)
    stored = StoredFiles(folder)
    record = IndexRecord(
        settings,
        stored.write("features", np.dtype("<f2"), (count, width), features),
        stored.write("times", np.dtype("<f8"), (count, 2), times),
        videos,
    )
    flush_folder(folder)
    write_json(folder / INDEX, {"format": FORMAT, **asdict(record)})
    remove_stale(folder, record)
    return record


class StoredFiles:
    """Array files in the folder of an index, named after their content."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, kind: str, dtype: np.dtype, shape: tuple[int, int], parts: Iterable[np.ndarray]) -> StoredArray:
        """Write an array in parts, flushed to the disk."""
        header = io.BytesIO()
        layout = {"descr": dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, layout)
        digest, aside = hashlib.sha256(), self.folder / PARTIAL / f"{kind}.npy"
        aside.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            for content in chain([header.getvalue()], (part.astype(dtype).tobytes() for part in parts)):
                digest.update(content)
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        name = f"{kind}-{digest.hexdigest()[:16]}.npy"
        aside.replace(self.folder / name)
        return StoredArray(name, digest.hexdigest())


def graph_path(folder: Path, record: IndexRecord) -> Path:
    """Return the path of the graph of usearch over the features."""
    return folder / record.features.name.replace("features-", "graph-").replace(".npy", ".usearch")


def remove_stale(folder: Path, record: IndexRecord) -> None:
    """Remove the arrays and graphs of earlier records."""
    current = {record.features.name, record.times.name, graph_path(folder, record).name}
    for pattern in ("features-*.npy", "times-*.npy", "graph-*.usearch"):
        for path in folder.glob(pattern):
            if path.name not in current:
                with suppress(OSError):  # Windows keeps files that a process has mapped; a later run removes them
                    path.unlink()


def _typed(record_class: type[RecordT], record: Any) -> RecordT:
    """Build a dataclass from a JSON object after a check of names and types."""
    hints = get_type_hints(record_class)
    if record.keys() != hints.keys():
        raise ValueError(f"{record_class.__name__} has the keys {sorted(record)}")
    for name, value in record.items():
        if not isinstance(value, hints[name]) or isinstance(value, bool):
            raise ValueError(f"{record_class.__name__}: {name}={value!r}")
    return record_class(**record)


def _checked_array(stored: StoredArray, kind: str) -> StoredArray:
    match = _ARRAY.fullmatch(stored.name)
    if match is None or match[1] != kind or not stored.sha256.startswith(match[2]):
        raise ValueError(f"{kind}={stored.name!r}")
    return stored


def _checked_video(record: Any) -> IndexedVideo:
    """Return a video of the record, whose name stays below the folder."""
    video = _typed(IndexedVideo, record)
    path = PurePosixPath(video.name)
    if video.windows < 1 or path.is_absolute() or not path.parts or ".." in path.parts or "\0" in video.name:
        raise ValueError(f"video {video.name!r} with {video.windows} windows")
    return video
