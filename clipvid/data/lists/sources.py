"""Sources of labeled videos: lists, folders by class, WebDataset shards, and `datasets`.

Each source yields batches of Arrow columns: `path`, `label` (as written), `line`, and the available columns of
`samples.COLUMNS`. `clipvid.data.manifest` checks them.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from clipvid.data.lists.places import locate
from clipvid.data.lists.samples import ManifestError
from clipvid.data.lists.shards import WebDatasetSource
from clipvid.data.lists.tables import Batches, read_table
from clipvid.data.lists.text import is_utf8
from clipvid.decoding.files import VIDEO_SUFFIXES
from clipvid.decoding.frames import is_image
from clipvid.files import cut, printable
from clipvid.registry import Choice, Registry


class Source(Protocol):
    """Source of videos."""

    @property
    def title(self) -> str:
        """Name of the source in messages."""

    def batches(self, root: Path, names: Collection[str]) -> Batches:
        """Yield columns of the videos. `names` are the class names, empty if they are not known yet."""


@dataclass(frozen=True)
class ListSource:
    """List in a file: lines `path label`, CSV, JSON, JSON lines or Parquet.

    Attributes:
        file: Path relative to the root.
        split: `train` or `val`, the rows to read if the list has a column `split`.
    """

    file: str
    split: Literal["train", "val"] | None = None

    @property
    def title(self) -> str:
        """Name of the source in messages."""
        return self.file

    def batches(self, root: Path, names: Collection[str]) -> Batches:
        """Yield the batches of the list, see `Source.batches`."""
        return read_table(root / self.file, names, self.split)


@dataclass(frozen=True)
class FolderSource:
    """Folder with one folder of videos for each class. Folders of frames count as videos.

    Attributes:
        folder: Path relative to the root.
    """

    folder: str

    @property
    def title(self) -> str:
        """Name of the source in messages."""
        return self.folder

    def batches(self, root: Path, names: Collection[str]) -> Batches:
        """Yield one batch of all videos.

        Raises:
            ManifestError: There are no videos.
        """
        top, others = root / self.folder, Counter[str]()
        rows = [
            (video.relative_to(root).as_posix() if video.is_relative_to(root) else os.path.abspath(video), kind.name)
            for kind in sorted(top.iterdir())
            if kind.is_dir() and not kind.name.startswith(".")
            for video in find_videos(kind, others)
        ]
        if not rows:
            raise ManifestError(
                f"{top}: no video in a folder below it; expected <class>/<video> with one of {sorted(VIDEO_SUFFIXES)}, "
                "or <class>/<folder of images>"
            )
        if others:
            shown = [
                (cut(printable(suffix), 20) or "without a suffix", count) for suffix, count in others.most_common(5)
            ]
            counts = ", ".join(f"{count} {suffix}" for suffix, count in shown)
            warnings.warn(f"{top}: files without the suffix of a video are skipped: {counts}", stacklevel=2)
        yield text_batch(rows)


@dataclass(frozen=True)
class DatasetsSource:
    """Data set of the `datasets` library: a repository on the Hub, `videofolder`, `parquet`, ...

    `path`, `split`, `config`, `revision`, `data_dir` and `data_files` are arguments of `datasets.load_dataset`;
    `data_dir` is relative to the root. `video`, `label`, `caption` and `group` are names of columns. Videos stay
    encoded until they are read. With `streaming`, only the list is downloaded, and each video on access.
    """

    path: str
    split: str = "train"
    config: str | None = None
    revision: str | None = None
    data_dir: str | None = None
    data_files: str | list[str] | None = None
    video: str = "video"
    label: str = "label"
    caption: str | None = None
    group: str | None = None
    streaming: bool = False

    @property
    def title(self) -> str:
        """Name of the source in messages."""
        return f"{self.path} ({self.split})"

    def batches(self, root: Path, names: Collection[str]) -> Batches:
        """Yield the batches of the data set, see `Source.batches`."""
        rows = self._load(root)
        line = 0
        classes = getattr(rows.features[self.label], "names", None)
        # Arrow batches of a data set on disk are views of its files: no bytes of videos are read.
        for part in rows.with_format("arrow").iter(batch_size=16 if self.streaming else 1000):
            videos = part[self.video]
            missing = pc.index(pc.is_valid(videos), False).as_py()
            if missing >= 0:
                raise ManifestError(f"{self.title}: row {line + missing} has no video; drop it")
            names = pc.struct_field(videos, "path").to_pylist()
            embedded = pc.is_valid(pc.struct_field(videos, "bytes")).to_pylist()
            columns = {name: part[column].to_pylist() for name, column in self._texts().items()}
            columns["label"] = [self._label(value, classes, line + i) for i, value in enumerate(columns["label"])]
            columns["path"] = [self._path(name, line + i) for i, name in enumerate(names)]
            if self.streaming and any(embedded):
                raise ManifestError(
                    f"{self.title} keeps its videos inside of larger files, where none can be fetched by itself; "
                    "set streaming: false"
                )
            files = [None if inside else name for name, inside in zip(names, embedded, strict=True)]
            lines = pa.array(range(line, line + len(names)), pa.int64())
            yield pa.record_batch({**columns, "file": pa.array(files, pa.string()), "line": lines})
            line += len(names)

    def media(self, root: Path) -> Callable[[int], bytes]:
        """Return a function from row numbers to the bytes of videos inside the data set."""
        return _Fetch(self, root)

    def _load(self, root: Path) -> Any:
        import datasets

        options = {key: value for key, value in asdict(self).items() if key in ("revision", "data_files") and value}
        if self.data_dir is not None:
            options["data_dir"] = str(root / locate(root, self.data_dir, "folder"))
        rows = datasets.load_dataset(self.path, self.config, split=self.split, streaming=self.streaming, **options)
        columns = [self.video, *self._texts().values()]
        for column in columns:
            if column not in rows.features:
                raise ManifestError(
                    f"{self.title} has the columns {list(rows.features)}, but no {column!r}; correct it"
                )
        return rows.select_columns(columns).cast_column(self.video, datasets.Video(decode=False))

    def _texts(self) -> dict[str, str]:
        """Return the columns beside the video, by our names."""
        columns = {"label": self.label, "caption": self.caption, "group": self.group}
        return {name: column for name, column in columns.items() if column is not None}

    def _label(self, value: Any, names: list[str] | None, row: int) -> str:
        if names is None or not isinstance(value, int):
            return str(value)
        if not 0 <= value < len(names):
            raise ManifestError(f"{self.title}: row {row} has the label {value}, which is not a class; drop it")
        return names[value]

    def _path(self, name: str | None, row: int) -> str:
        # A data set may repeat a file name in many folders, and a split in many files. Row and files make paths unique.
        chosen = (self.config, self.revision, self.data_dir, self.data_files)
        which = f"-{hashlib.sha256(json.dumps(chosen).encode()).hexdigest()[:8]}" if any(chosen) else ""
        return f"{self.path}{which}/{self.split}/{row}/{Path(name or 'video').name}"


class _Fetch:
    """Reader of the bytes of rows in a data set, which each process opens separately."""

    def __init__(self, source: DatasetsSource, root: Path) -> None:
        self.source, self.root = source, root

    def __reduce__(self) -> tuple[Any, ...]:
        return _Fetch, (self.source, self.root)

    @cached_property
    def _rows(self) -> Any:
        return self.source._load(self.root)

    def __call__(self, row: int) -> bytes:
        return bytes(self._rows[row][self.source.video]["bytes"])


SOURCES = Registry(
    "source of videos",
    {
        "list": ListSource,
        "folder": FolderSource,
        "webdataset": WebDatasetSource,
        "datasets": DatasetsSource,
    },
    group="clipvid.sources",
)


def resolve_source(spec: Choice, root: Path) -> Source:
    """Return the source of a config: `{name: datasets, path: ...}`, or a path whose form determines the kind.

    Paths start from `root`. What is not there is looked for from the working folder.

    Raises:
        FileNotFoundError: a list or folder is in neither place.
    """
    if isinstance(spec, str):
        if spec.endswith(".tar"):
            return WebDatasetSource(spec)
        name = locate(root, spec, "list of videos" if Path(spec).suffix else "list or folder of videos")
        return FolderSource(name) if (root / name).is_dir() else ListSource(name)
    source: Source = SOURCES.resolve(spec)[1]
    if isinstance(source, ListSource):
        return replace(source, file=locate(root, source.file, "list of videos"))
    if isinstance(source, FolderSource):
        return replace(source, folder=locate(root, source.folder, "folder of videos"))
    return source


def find_videos(folder: Path, others: Counter[str] | None = None) -> Iterator[Path]:
    """Yield video files and folders of images below a folder, in sorted order.

    Images next to videos or folders are thumbnails, not frames. Hidden entries are omitted. A folder is visited once,
    even with links to it. Other unusable entries are skipped, with a warning that counts and names them.

    Args:
        folder: The folder.
        others: Counts the suffixes of files that are neither videos nor images.
    """
    skipped: list[str] = []
    yield from _walk(folder, {os.path.realpath(folder)}, skipped, Counter() if others is None else others)
    if skipped:
        warnings.warn(
            f"{folder}: {len(skipped)} entries are skipped (names that are not UTF-8, link loops, not regular "
            f"files, or folders that cannot be opened), such as {skipped[:3]}",
            stacklevel=2,
        )


def _walk(folder: Path, visited: set[str], skipped: list[str], others: Counter[str]) -> Iterator[Path]:
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError:
        skipped.append(ascii(str(folder)))
        return
    below = [entry for entry in entries if entry.is_dir() or entry.suffix.lower() in VIDEO_SUFFIXES]
    if not below and any(map(is_image, entries)):
        yield folder
    others.update(
        entry.suffix.lower() for entry in set(entries).difference(below) if entry.is_file() and not is_image(entry)
    )
    for entry in below:
        real = os.path.realpath(entry)
        if not is_utf8(entry.name) or real in visited or not (entry.is_dir() or entry.is_file()):
            skipped.append(ascii(str(entry)))
        elif entry.is_dir():
            visited.add(real)
            yield from _walk(entry, visited, skipped, others)
        else:
            yield entry


def text_batch(rows: list[tuple[str, str]]) -> pa.RecordBatch:
    """Return (path, label) rows as a batch."""
    paths, labels = zip(*rows, strict=True)
    return pa.record_batch({"path": paths, "label": labels, "line": pa.array(range(1, len(rows) + 1), pa.int64())})
