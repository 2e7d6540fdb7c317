"""Where labelled videos come from: lists, folders by class, WebDataset shards, and `datasets`.

Each source gives batches of Arrow columns: `path`, `label` (as written), `line`, and of `samples.COLUMNS`
those that it knows; `clipvid.data.manifest` checks them, whatever their source.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import os
import re
import tarfile
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import pyarrow as pa

from clipvid.data.decoding.frames import is_image
from clipvid.data.lists.samples import VIDEO_SUFFIXES, ManifestError
from clipvid.data.lists.tables import Batches, read_table
from clipvid.data.lists.text import check_list, parse_json
from clipvid.registry import Choice, Registry

MAX_SHARDS = 100_000
_MAX_TOLD = 1 << 20  # bytes of a label, a caption or a header of a shard


class Source(Protocol):
    """Something that lists videos. `title` names it in messages; a list that is a file says which."""

    @property
    def title(self) -> str: ...

    def batches(self, root: Path, names: Collection[str]) -> Batches:
        """Columns of what it lists; `names` are those of the classes, empty where they are not known yet."""


@dataclass(frozen=True)
class ListSource:
    """A list in a file: lines `path label`, CSV, JSON, JSON lines or Parquet.

    file: taken from the root. split: `train` or `val`, the rows to take if the list has a column `split`.
    """

    file: str
    split: Literal["train", "val"] | None = None

    @property
    def title(self) -> str:
        return self.file

    def batches(self, root: Path, names: Collection[str]) -> Batches:
        return read_table(root / self.file, names, self.split)


@dataclass(frozen=True)
class FolderSource:
    """A folder with a folder of videos for each class; folders of frames are videos, too. folder: from the root."""

    folder: str

    @property
    def title(self) -> str:
        return self.folder

    def batches(self, root: Path, names: Collection[str]) -> Batches:
        top = root / self.folder
        rows = [
            (video.relative_to(root).as_posix() if video.is_relative_to(root) else str(video), kind.name)
            for kind in sorted(top.iterdir())
            if kind.is_dir() and not kind.name.startswith(".")
            for video in find_videos(kind)
        ]
        if not rows:
            raise ManifestError(
                f"{top}: no video in a folder below it; expected <class>/<video> with one of {sorted(VIDEO_SUFFIXES)}, "
                "or <class>/<folder of images>"
            )
        yield text_batch(rows)


@dataclass(frozen=True)
class WebDatasetSource:
    """Tar files of WebDataset: members `key.mp4` with `key.cls`, or `key.json` with `label`; captions in `key.txt`.

    shards: `train-{000..009}.tar` or `train-*.tar`, from the root. Videos are read where they lie in the shards, in
    any order; nothing is unpacked. Shards must be uncompressed.
    """

    shards: str

    @property
    def title(self) -> str:
        return self.shards

    def batches(self, root: Path, names: Collection[str]) -> Batches:
        start = "" if Path(self.shards).is_absolute() else f"{glob.escape(str(root))}/"
        files = [Path(found) for pattern in _braces(self.shards) for found in sorted(glob.glob(f"{start}{pattern}"))]
        if not files:
            raise FileNotFoundError(f"no shard matches {self.shards} in {root}")
        for file in files:
            yield _shard_batch(file, file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file))


@dataclass(frozen=True)
class DatasetsSource:
    """A data set of the `datasets` library: a repository on the Hub, `videofolder`, `parquet`, ...

    path, split, config, revision, data_dir, data_files: as `datasets.load_dataset` takes them; data_dir from the root.
    video, label, caption, group: its columns. Videos stay encoded until they are wanted.
    streaming: nothing is downloaded but the list; each video is fetched when it is wanted.
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
        return f"{self.path} ({self.split})"

    def batches(self, root: Path, names: Collection[str]) -> Batches:
        rows = self._load(root)
        line = 0
        labels = getattr(rows.features[self.label], "names", None)
        columns = {"label": self.label, "caption": self.caption, "group": self.group}
        for part in rows.iter(batch_size=16):  # which hold the bytes of their videos
            videos = part[self.video]
            if None in videos:
                raise ManifestError(f"{self.title}: row {line + videos.index(None)} has no video; drop it")
            found = {name: part[column] for name, column in columns.items() if column is not None}
            found["label"] = [self._label(value, labels, line + i) for i, value in enumerate(found["label"])]
            found["path"] = [self._path(video, line + i) for i, video in enumerate(videos)]
            files = [None if video.get("bytes") is not None else video["path"] for video in videos]
            lines = pa.array(range(line, line + len(videos)), pa.int64())
            yield pa.record_batch({**found, "file": pa.array(files, pa.string()), "line": lines})
            line += len(videos)

    def media(self, root: Path) -> Callable[[int], bytes]:
        """Row number -> bytes of a video that lies in the data set itself."""
        return _Fetch(self, root)

    def _load(self, root: Path) -> Any:
        import datasets

        options = {key: value for key, value in asdict(self).items() if key in ("revision", "data_files") and value}
        if self.data_dir is not None:
            options["data_dir"] = str(root / self.data_dir)
        rows = datasets.load_dataset(self.path, self.config, split=self.split, streaming=self.streaming, **options)
        columns = list(filter(None, (self.video, self.label, self.caption, self.group)))
        for column in columns:
            if column not in rows.features:
                raise ManifestError(f"{self.title} has the columns {list(rows.features)}, but no {column!r}; name it")
        return rows.select_columns(columns).cast_column(self.video, datasets.Video(decode=False))

    def _label(self, value: Any, names: list[str] | None, row: int) -> str:
        if names is None or not isinstance(value, int):
            return str(value)
        if not 0 <= value < len(names):
            raise ManifestError(f"{self.title}: row {row} has the label {value}, which is no class; drop it")
        return names[value]

    def _path(self, video: dict[str, Any], row: int) -> str:
        if self.streaming and video.get("bytes") is not None:
            raise ManifestError(
                f"{self.title} keeps its videos inside of larger files, where none can be fetched by itself; "
                "set streaming: false"
            )
        # A data set may use one file name in many folders, and one split for many files: row and files tell them apart.
        chosen = (self.config, self.revision, self.data_dir, self.data_files)
        which = f"-{hashlib.sha256(json.dumps(chosen).encode()).hexdigest()[:8]}" if any(chosen) else ""
        return f"{self.path}{which}/{self.split}/{row}/{Path(video.get('path') or 'video').name}"


class _Fetch:
    """Bytes of the rows of a data set, which each process opens for itself."""

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
    """The source that a config asks for: `{name: datasets, path: ...}`, or a path whose looks say what it is."""
    if isinstance(spec, str):
        if (root / spec).is_dir():
            return FolderSource(spec)
        return WebDatasetSource(spec) if spec.endswith(".tar") else ListSource(spec)
    source: Source = SOURCES.resolve(spec)[1]
    return source


def find_videos(folder: Path) -> Iterator[Path]:
    """Yield video files and folders of images below a folder, in sorted order.

    Images beside videos or folders are thumbnails, not frames. Hidden entries are left out. A folder is visited once,
    whatever links lead to it. Other entries that cannot be used are skipped, counted and named in a warning.
    """
    skipped: list[str] = []
    yield from _walk(folder, {os.path.realpath(folder)}, skipped)
    if skipped:
        warnings.warn(
            f"{folder}: {len(skipped)} entries are skipped (names that are not UTF-8, links in a loop, no regular "
            f"files, or folders that cannot be opened), such as {skipped[:3]}",
            stacklevel=2,
        )


def _walk(folder: Path, visited: set[str], skipped: list[str]) -> Iterator[Path]:
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError:
        skipped.append(ascii(str(folder)))
        return
    below = [entry for entry in entries if entry.is_dir() or entry.suffix.lower() in VIDEO_SUFFIXES]
    if not below and any(map(is_image, entries)):
        yield folder
    for entry in below:
        real = os.path.realpath(entry)
        if not _is_utf8(entry.name) or real in visited or not (entry.is_dir() or entry.is_file()):
            skipped.append(ascii(str(entry)))
        elif entry.is_dir():
            visited.add(real)
            yield from _walk(entry, visited, skipped)
        else:
            yield entry


def _is_utf8(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def text_batch(rows: list[tuple[str, str]]) -> pa.RecordBatch:
    """(path, label) as a batch."""
    paths, labels = zip(*rows, strict=True)
    return pa.record_batch({"path": paths, "label": labels, "line": pa.array(range(1, len(rows) + 1), pa.int64())})


def _braces(pattern: str) -> list[str]:
    """`a-{00..11}.tar` -> a-00.tar, ..., a-11.tar."""
    match = re.search(r"\{(\d{1,9})\.\.(\d{1,9})\}", pattern)
    if match is None:
        return [pattern]
    before, after = pattern[: match.start()], pattern[match.end() :]
    numbers = range(int(match[1]), int(match[2]) + 1)
    if len(numbers) > MAX_SHARDS:
        raise ManifestError(f"{pattern}: it names {len(numbers)} shards, more than {MAX_SHARDS}; correct it")
    return [name for i in numbers for name in _braces(f"{before}{i:0{len(match[1])}d}{after}")]


def _shard_batch(file: Path, name: str) -> pa.RecordBatch:
    """The videos of one shard: where each lies in it, and what the other members of its key say of it."""
    videos: dict[str, tarfile.TarInfo] = {}
    told: dict[str, dict[str, Any]] = {}
    try:
        check_list(file, "shard")
        end = file.stat().st_size
        with _BoundedFile(file) as handle, tarfile.open(fileobj=handle, mode="r:") as tar:
            for member in tar:
                if member.issparse() or member.size < 0 or member.offset_data + member.size > end:
                    raise ManifestError(f"{file}: member {member.name!a} is sparse or cut off; write the shard again")
                if not _is_utf8(member.name):
                    warnings.warn(f"{file}: {member.name!a} is skipped, its name is not UTF-8", stacklevel=2)
                    continue
                folder, _, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                key = f"{folder}/{stem}"
                if not stem or not member.isfile():  # `._a.mp4` of macOS, folders, links
                    continue
                if f".{suffix.rpartition('.')[2].lower()}" in VIDEO_SUFFIXES:
                    if key in videos:
                        raise ManifestError(f"{file}: {videos[key].name} and {member.name} have one key; rename one")
                    videos[key] = member
                elif suffix in ("cls", "txt", "json"):
                    content = tar.extractfile(member)
                    found = _told(file, suffix, content.read().decode() if content else "")
                    before = told.setdefault(key, {})
                    twice = [name for name, value in found.items() if before.get(name, value) != value]
                    if twice:
                        raise ManifestError(f"{file}: {member.name} gives the {twice[0]} of its key again; drop one")
                    before.update(found)
    except (tarfile.TarError, UnicodeDecodeError, OSError) as error:
        raise ManifestError(f"{file}: not a shard of WebDataset ({error}); it has to be an uncompressed tar") from None
    missing = [video.name for key, video in videos.items() if "label" not in told.get(key, {})]
    if missing or not videos:
        problem = f"{missing[:3]} have no label" if missing else "it holds no video"
        raise ManifestError(f"{file}: {problem}; expected key.mp4 with key.cls, or key.json with a label")
    captions = [told[key].get("caption") for key in videos]
    return pa.record_batch(
        {
            "path": [f"{name}/{video.name}" for video in videos.values()],
            "label": [told[key]["label"] for key in videos],
            "caption": pa.array(captions, pa.string()),
            "file": [str(file.absolute())] * len(videos),
            "offset": [video.offset_data for video in videos.values()],
            "size": [video.size for video in videos.values()],
            "line": pa.array(range(1, len(videos) + 1), pa.int64()),
        }
    )


class _BoundedFile(io.FileIO):
    """A file that refuses to read more than `_MAX_TOLD` bytes at once. Headers of a tar may ask for any number."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read `size` bytes."""
        if size is None or not 0 <= size <= _MAX_TOLD:
            raise tarfile.ReadError(f"a header or text of {size} bytes, more than {_MAX_TOLD}")
        return super().read(size) or b""


def _told(file: Path, suffix: str, text: str) -> dict[str, str]:
    if suffix == "json":
        content = parse_json(file, text)
        found = content if isinstance(content, dict) else {}
        return {key: str(found[key]) for key in ("label", "caption") if found.get(key) is not None}
    return {"label" if suffix == "cls" else "caption": text.strip()}
