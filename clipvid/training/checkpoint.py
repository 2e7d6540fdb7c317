"""Checkpoints: written to a temporary folder, flushed, renamed and hashed. A run resumes from the newest intact one.

A checkpoint is a folder `step_<number>`. It has one `<name>.safetensors` per set of weights (`model`, and optionally
`ema` and `best`), `optimizer.pt` and `progress.json`. `SHA256SUMS` covers all of these (for `sha256sum -c`).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from clipvid import InputError
from clipvid.files import new_folder, write_flushed

FORMAT_VERSION = 2
_PREFIX, _DAMAGED, _SUMS = "step_", "damaged_", "SHA256SUMS"


class CheckpointError(InputError):
    """Error for a damaged checkpoint."""


@dataclass(frozen=True)
class Checkpoint:
    """State of a run.

    Attributes:
        weights: Tensors by name, under `model` and optionally `ema` and `best`.
        optimizer: State of optimizer, scheduler and scaler, in plain types and tensors.
        progress: JSON types, including `step`.
    """

    weights: dict[str, dict[str, Tensor]]
    optimizer: dict[str, Any]
    progress: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write `folder/step_<step>` completely or not at all, then delete all but the newest `keep`.

    Raises:
        OSError: The checkpoint could not be written (such as on a full disk). Older checkpoints are kept.
    """
    target = folder / f"{_PREFIX}{checkpoint.progress['step']:08d}"
    if target.exists():
        return target
    with new_folder(target) as aside:
        sums = "".join(f"{digest}  {name}\n" for name, digest in _write_files(aside, checkpoint).items())
        write_flushed(aside / _SUMS, sums.encode())
    for old in list_checkpoints(folder)[:-keep]:
        with suppress(OSError):
            old.rename(folder / f".{old.name}.removed")  # so that no partly deleted checkpoint is found
    for left in folder.glob(f".{_PREFIX}*"):
        shutil.rmtree(left, ignore_errors=True)
    return target


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CheckpointError: It is damaged. The message names the file.
        InputError: It has another format.
        OSError: The disk cannot be read.
    """
    try:
        contents = {file.name: file.read_bytes() for file in sorted(path.iterdir()) if _is_ours(file)}
        progress = json.loads(contents["progress.json"])
        version = progress["format_version"]
        if not isinstance(version, int) or not isinstance(progress["step"], int):
            raise TypeError("progress.json has no integers for format_version and step")
    except OSError:  # a disk error does not mean a damaged file
        raise
    except Exception as error:
        raise CheckpointError(f"{path} is damaged: progress.json cannot be read ({error!r})") from error
    if version != FORMAT_VERSION:
        way_out = "upgrade clipvid" if version > FORMAT_VERSION else "train again in another output_dir"
        raise InputError(f"{path} has format {version}, this clipvid reads format {FORMAT_VERSION}: {way_out}")
    _verify(path, contents)
    try:
        optimizer = torch.load(io.BytesIO(contents["optimizer.pt"]), weights_only=True, map_location="cpu")
        suffix = ".safetensors"
        names = [name for name in contents if name.endswith(suffix)]
        weights = {name.removesuffix(suffix): load_tensors(contents[name]) for name in names}
        if "model" not in weights or not isinstance(optimizer, dict):
            raise KeyError("model.safetensors")
    except Exception as error:  # torch, pickle, zip and safetensors raise different classes
        raise CheckpointError(f"{path} is damaged: its tensors cannot be read ({error!r})") from error
    return Checkpoint(weights, optimizer, progress)


def load_newest(folder: Path) -> tuple[Path, Checkpoint] | None:
    """Return the newest intact checkpoint of `folder`, or None if there is none. Damaged ones are reported and renamed.

    Raises:
        CheckpointError: Every checkpoint is damaged.
    """
    checkpoints = list_checkpoints(folder)
    for path in reversed(checkpoints):
        try:
            return path, load_checkpoint(path)
        except CheckpointError as error:
            aside = folder / f"{_DAMAGED}{path.name}"
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            warnings.warn(f"{error}; it is renamed to {aside.name}, and the previous checkpoint is used", stacklevel=2)
    if checkpoints:
        raise CheckpointError(
            f"all {len(checkpoints)} checkpoints of {folder} are damaged; start the same command again to train from "
            "the beginning, or restore a copy of one"
        )
    return None


def list_checkpoints(folder: Path) -> list[Path]:
    """Return finished checkpoints, oldest first."""
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if path.is_dir())


def recorded_batch_size(folder: Path) -> int | None:
    """Return the batch size of the newest checkpoint with a readable record, or None."""
    for path in reversed(list_checkpoints(folder)):
        with suppress(OSError, ValueError, KeyError, TypeError):
            size = json.loads((path / "progress.json").read_text())["per_device_batch"]
            if isinstance(size, int) and size > 0:
                return size
    return None


def _write_files(folder: Path, checkpoint: Checkpoint) -> dict[str, str]:
    """Write every file of a checkpoint, and return their hashes. At most one set of weights is copied at a time.

    The hashes are those of the bytes in memory, so that corruption on disk is detected.
    """
    digests = {}
    for name, tensors in checkpoint.weights.items():
        content = save_tensors(tensors)
        digests[f"{name}.safetensors"] = _sha256(content)
        write_flushed(folder / f"{name}.safetensors", content)
        del content
    with (folder / "optimizer.pt").open("wb") as file:
        hashed = _HashedWriter(file)
        torch.save(checkpoint.optimizer, hashed)  # type: ignore[arg-type]
        hashed.flush()
        digests["optimizer.pt"] = hashed.digest.hexdigest()
    record = json.dumps({"format_version": FORMAT_VERSION, **checkpoint.progress}).encode()
    write_flushed(folder / "progress.json", record)
    return digests | {"progress.json": _sha256(record)}


class _HashedWriter:
    """File to write to, which hashes what is written."""

    def __init__(self, file: BinaryIO):
        self._file, self.digest = file, hashlib.sha256()

    def write(self, content: bytes) -> int:
        """Write bytes after those before."""
        self.digest.update(content)
        return self._file.write(content)

    def flush(self) -> None:
        """Flush the file to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())


def _is_ours(file: Path) -> bool:
    """Return True if a file belongs to a checkpoint. Editors and file servers may add others."""
    return file.is_file() and (file.suffix == ".safetensors" or file.name in ("optimizer.pt", "progress.json", _SUMS))


def _verify(path: Path, contents: dict[str, bytes]) -> None:
    if _SUMS not in contents:
        raise CheckpointError(f"{path} is damaged: it has no {_SUMS}")
    lines = contents[_SUMS].decode(errors="replace").splitlines()
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    wrong = [name for name, content in contents.items() if name != _SUMS and sums.get(name) != _sha256(content)]
    wrong += [name for name in sums if name not in contents]
    if wrong:
        raise CheckpointError(f"{path} is damaged: {', '.join(wrong)} is not what was written")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
