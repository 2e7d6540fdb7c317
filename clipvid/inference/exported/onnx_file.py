"""Check of an ONNX file before any library opens it, and its metadata.

A file of a stranger may name other files that hold its weights, which onnxruntime would open. `clipvid export` never
writes such files, so they are refused. ONNX is a protobuf message: a sequence of fields, each a key (number and kind)
and a value. The walk reads keys and lengths only, and follows the messages that can contain tensors.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from clipvid import InputError
from clipvid.files import check_regular
from clipvid.inference.exported.record import MAX_BYTES

_MAX_FIELDS = 2_000_000
_MAX_DEPTH = 30
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
_METADATA = 14  # field of ModelProto
# Messages that can contain tensors, by the number of their field; see onnx.proto.
_CONTENT: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # fields of TensorProto


class _Field(NamedTuple):
    number: int
    kind: int
    start: int
    end: int
    value: int


class _Damaged(Exception):
    """Error for bytes that are not a message."""


def read_metadata(path: Path, key: str) -> bytes | None:
    """Return the value of `key` in the metadata of an ONNX file, or None.

    Raises:
        InputError: The file is damaged, is not an ONNX file, refers to other files, or its metadata is too long.
        FileNotFoundError: The file does not exist.
    """
    check_regular(path, "model")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty; expected a model of clipvid export")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        walk = _Walk(data, path)
        try:
            metadata = walk.metadata()
            walk.check("model", 0, len(data), 0)
        except _Damaged:
            raise InputError(f"{path}: not an ONNX file, or damaged; expected a model of clipvid export") from None
    return metadata.get(key.encode())


class _Walk:
    """Walk over the messages of one file."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data, self._path, self._count = data, path, 0

    def metadata(self) -> dict[bytes, bytes]:
        """Return the metadata of the model."""
        entries, total = {}, 0
        for field in self._fields(0, len(self._data)):
            if field.number != _METADATA or field.kind != _BYTES:
                continue
            total += field.end - field.start
            if total > 2 * MAX_BYTES:
                raise InputError(f"{self._path}: its metadata has over {2 * MAX_BYTES:,} bytes, which is not read")
            parts = {part.number: self._data[part.start : part.end] for part in self._fields(field.start, field.end)}
            entries[parts.get(1, b"")] = parts.get(2, b"")
        return entries

    def check(self, message: str, start: int, end: int, depth: int) -> None:
        """Raise InputError for a tensor that is stored in another file."""
        if depth > _MAX_DEPTH:
            raise _Damaged
        for field in self._fields(start, end):
            if message == "tensor" and (
                field.number == _EXTERNAL_DATA or (field.number == _DATA_LOCATION and field.value != 0)
            ):
                raise InputError(
                    f"{self._path}: its weights are in other files, which is refused; clipvid export writes one file"
                )
            content = _CONTENT[message].get(field.number)
            if content is not None and field.kind == _BYTES:
                self.check(content, field.start, field.end, depth + 1)

    def _fields(self, start: int, end: int) -> Iterator[_Field]:
        while start < end:
            self._count += 1
            if self._count > _MAX_FIELDS:
                raise InputError(f"{self._path}: it has more than {_MAX_FIELDS:,} parts, which are not read")
            key, start = self._varint(start, end)
            kind, value, stop = key & 7, 0, start
            if kind == _VARINT:
                value, stop = self._varint(start, end)
            elif kind == _BYTES:
                length, start = self._varint(start, end)
                stop = start + length
            elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
                stop = start + (8 if kind == _EIGHT_BYTES else 4)
            else:
                raise _Damaged
            if stop > end or not key >> 3:
                raise _Damaged
            yield _Field(key >> 3, kind, start, stop, value)
            start = stop

    def _varint(self, start: int, end: int) -> tuple[int, int]:
        value = 0
        for place in range(start, min(start + 10, end)):
            byte = self._data[place]
            value |= (byte & 0x7F) << (7 * (place - start))
            if byte < 0x80:
                return value, place + 1
        raise _Damaged
