"""One labelled video, and many of them in columns that need not be in memory."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, overload

import fsspec
import pyarrow as pa
from torch import Tensor

from clipvid import InputError

VIDEO_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("mp4", "avi", "mkv", "webm", "mov", "m4v", "mpg", "mpeg", "ts", "m2ts", "flv"),
        *("wmv", "gif", "3gp", "ogv", "vob", "h264", "264", "hevc", "265"),
    )
)
Media = Callable[[], str | bytes]
Item = Callable[[], tuple[Tensor, int]]
UNREAD = -1


class ManifestError(InputError):
    """A list that cannot be used as it is; the message says where and what to do."""


@dataclass(frozen=True)
class Sample:
    """One labelled video.

    Attributes:
        path: relative to the root, with forward slashes; also of a folder of frames. A name for videos inside of other
            files and for items of a Dataset.
        label: class id; `UNREAD` for items of a Dataset, whose label comes with their frames.
        group: what is held out together (person, source).
        start: start of the part to use, in seconds; None for the start of the video.
        end: end of the part to use, in seconds; None for the end of the video.
        caption: text that describes the video.
        media: returns path or bytes of a video that is not a file below the root.
        item: returns frames and label of an item of a Dataset.
    """

    path: str
    label: int
    group: str | None = None
    start: float | None = None
    end: float | None = None
    caption: str | None = None
    media: Media | None = field(default=None, compare=False)
    item: Item | None = field(default=None, compare=False)


@dataclass(frozen=True)
class ClassInfo:
    """One class: its id (0..K-1), its name, and the further columns of the class list."""

    id: int
    name: str
    attributes: dict[str, str] = field(default_factory=dict)


COLUMNS = pa.schema(
    [
        ("path", pa.string()),
        ("label", pa.int32()),
        ("group", pa.string()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("caption", pa.string()),
        ("file", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("line", pa.int64()),
    ]
)


class Samples(Sequence[Sample]):
    """Samples that are made on access, by index or slice."""

    @abstractmethod
    def at(self, place: int) -> Sample:
        """Return a sample by its place, 0 to the length - 1."""

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return tuple(self.at(place) for place in range(*index.indices(len(self))))
        return self.at(range(len(self))[index])


class Rows(Samples):
    """Samples in an Arrow table of `COLUMNS`, made when they are asked for.

    `file`, `offset` and `size` say which bytes of which file hold a video that lies inside of it; `file` alone is a
    path or an address of a file that is a video. `line` is where the source lists it.

    Args:
        table: `path`, `label`, `line` and further columns.
        file: an Arrow file that holds the same table, which other processes then map into memory.
        media: row number -> bytes, for videos that lie in none.
    """

    def __init__(self, table: pa.Table, file: Path | None = None, media: Callable[[int], bytes] | None = None) -> None:
        self.table, self.file, self.media = table, file, media
        # Columns of nothing but nulls would be asked for each sample.
        filled = [name for name in table.column_names if table[name].null_count < len(table)]
        self._columns = [name for name in filled if name != "line"]

    @classmethod
    def mapped(cls, file: Path) -> Rows:
        """The table of an Arrow file, left on disk."""
        return cls(pa.ipc.open_file(pa.memory_map(str(file))).read_all(), file)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.file is not None:
            return Rows.mapped, (self.file,)
        return Rows, (self.table, None, self.media)

    def __len__(self) -> int:
        return len(self.table)

    def at(self, place: int) -> Sample:
        return self._sample({name: self.table[name][place].as_py() for name in self._columns}, place)

    def __iter__(self) -> Iterator[Sample]:
        place = 0
        for batch in self.table.select(self._columns).to_batches(max_chunksize=4096):
            for row in batch.to_pylist():
                yield self._sample(row, place)
                place += 1

    def _sample(self, row: dict[str, Any], place: int) -> Sample:
        file, offset, size = (row.pop(name, None) for name in ("file", "offset", "size"))
        if file is not None:
            return Sample(**row, media=partial(_fetch, file, offset, size))
        return Sample(**row, media=None if self.media is None else partial(self.media, place))


def _fetch(file: str, offset: int | None, size: int | None) -> str | bytes:
    if offset is None and "://" not in file:
        return file
    with fsspec.open(file, "rb") as handle:
        handle.seek(offset or 0)
        return bytes(handle.read(-1 if size is None else size))
