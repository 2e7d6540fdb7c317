"""Labeled videos, one or many in columns that may stay on disk."""

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

Media = Callable[[], str | bytes]
Item = Callable[[], tuple[Tensor, int]]
UNREAD = -1


class ManifestError(InputError):
    """Error for a list that cannot be used. The message has the position and a remedy."""


@dataclass(frozen=True)
class Sample:
    """Labeled video.

    Attributes:
        path: Path relative to the root, with forward slashes, also of a folder of frames. A name for videos inside
            other files and for items of a Dataset.
        label: Class id, or `UNREAD` for items of a Dataset, whose label is read with their frames, and for videos with
            `labels`.
        group: Group that is held out together (person, source).
        start: Start of the part to use, in seconds, or None for the start of the video.
        end: End of the part to use, in seconds, or None for the end of the video.
        caption: Text that describes the video.
        labels: Class ids in ascending order, if the list gives several labels per video; otherwise None.
        media: Function that returns path or bytes of a video that is not a file below the root.
        item: Function that returns frames and label of an item of a Dataset.
    """

    path: str
    label: int
    group: str | None = None
    start: float | None = None
    end: float | None = None
    caption: str | None = None
    labels: tuple[int, ...] | None = None
    media: Media | None = field(default=None, compare=False)
    item: Item | None = field(default=None, compare=False)


@dataclass(frozen=True)
class ClassInfo:
    """Class with its id (0..K-1), its name, and further columns of the class list."""

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
        ("labels", pa.list_(pa.int32())),
        ("file", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("line", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Stored:
    """A video at a place of its source's choice, returned as a path or as bytes when it is called.

    Attributes:
        file: path or address of a file.
        offset: first byte of the video in the file; None for a file that is the video.
        size: bytes of the video; None up to the end of the file.
    """

    file: str
    offset: int | None = None
    size: int | None = None

    def __call__(self) -> str | bytes:
        """Return the path of a local file that is the video, otherwise the bytes of the video."""
        if self.offset is None and "://" not in self.file:
            return self.file
        with fsspec.open(self.file, "rb") as handle:
            handle.seek(self.offset or 0)
            return bytes(handle.read(-1 if self.size is None else self.size))


class Samples(Sequence[Sample]):
    """Samples that are created on access, by index or slice."""

    @abstractmethod
    def at(self, place: int) -> Sample:
        """Return a sample by its position, 0 to the length - 1."""

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return tuple(self.at(place) for place in range(*index.indices(len(self))))
        return self.at(range(len(self))[index])


class Rows(Samples):
    """Samples in an Arrow table of `COLUMNS`, created on access.

    `file`, `offset` and `size` locate a video inside another file. `file` alone is a path or a URL of a video file.
    `line` is the position in the source.

    Args:
        table: `path`, `label`, `line` and further columns.
        file: Arrow file with the same table, which other processes memory-map.
        media: Row number -> bytes, for videos that are not files.
    """

    def __init__(self, table: pa.Table, file: Path | None = None, media: Callable[[int], bytes] | None = None) -> None:
        self.table, self.file, self.media = table, file, media
        # Skip columns of nulls, which would be read for each sample.
        filled = [name for name in table.column_names if table[name].null_count < len(table)]
        self._columns = [name for name in filled if name != "line"]

    @classmethod
    def mapped(cls, file: Path) -> Rows:
        """Memory-map the table of an Arrow file."""
        return cls(pa.ipc.open_file(pa.memory_map(str(file))).read_all(), file)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.file is not None:
            return Rows.mapped, (self.file,)
        return Rows, (self.table, None, self.media)

    def __len__(self) -> int:
        return len(self.table)

    def at(self, place: int) -> Sample:
        """Return the sample at a row."""
        return self._sample({name: self.table[name][place].as_py() for name in self._columns}, place)

    def __iter__(self) -> Iterator[Sample]:
        place = 0
        for batch in self.table.select(self._columns).to_batches(max_chunksize=4096):
            for row in batch.to_pylist():
                yield self._sample(row, place)
                place += 1

    def _sample(self, row: dict[str, Any], place: int) -> Sample:
        file, offset, size = (row.pop(name, None) for name in ("file", "offset", "size"))
        if "labels" in row:
            row |= {"label": UNREAD, "labels": tuple(row["labels"])}
        if file is not None:
            return Sample(**row, media=Stored(file, offset, size))
        return Sample(**row, media=None if self.media is None else partial(self.media, place))
