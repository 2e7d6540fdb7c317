"""WebDataset shards: tar files with videos and their labels."""

from __future__ import annotations

import io
import tarfile
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from clipvid.data.lists.places import locate_shards
from clipvid.data.lists.samples import ManifestError
from clipvid.data.lists.tables import Batches
from clipvid.data.lists.text import check_list, is_utf8, parse_json
from clipvid.decoding.files import VIDEO_SUFFIXES

_MAX_TEXT = 1 << 20  # bytes of a label, a caption or a header of a shard


@dataclass(frozen=True)
class WebDatasetSource:
    """Source of WebDataset tar files: `key.mp4` with `key.cls`, or `key.json` with `label`; captions in `key.txt`.

    Videos are read inside the shards, in any order, without unpacking. Shards must be uncompressed.

    Attributes:
        shards: `train-{000..009}.tar` or `train-*.tar`, relative to the root or the working folder.
    """

    shards: str

    @property
    def title(self) -> str:
        """Name of the source in messages."""
        return self.shards

    def batches(self, root: Path, names: Collection[str]) -> Batches:
        """Yield one batch per shard."""
        for file in locate_shards(root, self.shards):
            yield _shard_batch(file, file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file))


def _shard_batch(file: Path, name: str) -> pa.RecordBatch:
    """Return the videos of one shard, with their positions and the labels and captions of their keys."""
    videos: dict[str, tarfile.TarInfo] = {}
    texts: dict[str, dict[str, Any]] = {}
    try:
        check_list(file, "shard")
        end = file.stat().st_size
        with _BoundedFile(file) as handle, tarfile.open(fileobj=handle, mode="r:") as tar:
            for member in tar:
                if member.issparse() or member.size < 0 or member.offset_data + member.size > end:
                    raise ManifestError(f"{file}: member {member.name!a} is sparse or cut off; write the shard again")
                if not is_utf8(member.name):
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
                    own = _texts(file, suffix, content.read().decode() if content else "")
                    before = texts.setdefault(key, {})
                    twice = [name for name, value in own.items() if before.get(name, value) != value]
                    if twice:
                        raise ManifestError(f"{file}: {member.name} gives the {twice[0]} of its key again; drop one")
                    before.update(own)
    except (tarfile.TarError, UnicodeDecodeError, OSError) as error:
        raise ManifestError(f"{file}: not a shard of WebDataset ({error}); expected an uncompressed tar") from None
    missing = [video.name for key, video in videos.items() if "label" not in texts.get(key, {})]
    if missing or not videos:
        problem = f"{missing[:3]} have no label" if missing else "it contains no video"
        raise ManifestError(f"{file}: {problem}; expected key.mp4 with key.cls, or key.json with a label")
    captions = [texts[key].get("caption") for key in videos]
    return pa.record_batch(
        {
            "path": [f"{name}/{video.name}" for video in videos.values()],
            "label": [texts[key]["label"] for key in videos],
            "caption": pa.array(captions, pa.string()),
            "file": [str(file.absolute())] * len(videos),
            "offset": [video.offset_data for video in videos.values()],
            "size": [video.size for video in videos.values()],
            "line": pa.array(range(1, len(videos) + 1), pa.int64()),
        }
    )


class _BoundedFile(io.FileIO):
    """File that refuses to read more than `_MAX_TEXT` bytes at once, since tar headers may request any number."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read `size` bytes."""
        if size is None or not 0 <= size <= _MAX_TEXT:
            raise tarfile.ReadError(f"a header or text of {size} bytes, more than {_MAX_TEXT}")
        return super().read(size) or b""


def _texts(file: Path, suffix: str, text: str) -> dict[str, str]:
    if suffix == "json":
        content = parse_json(file, text)
        fields = content if isinstance(content, dict) else {}
        return {key: str(fields[key]) for key in ("label", "caption") if fields.get(key) is not None}
    return {"label" if suffix == "cls" else "caption": text.strip()}
