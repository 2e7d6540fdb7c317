"""Training state on disk: written aside, flushed, renamed; the newest whole one is where a run goes on."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

FORMAT_VERSION = 1
_PREFIX = "step_"


def save_checkpoint(
    folder: Path, step: int, weights: dict[str, Tensor], optimizer: dict[str, Any], progress: dict[str, Any], keep: int
) -> Path:
    """Write `folder/step_<step>` whole or not at all, then drop all but the newest `keep`."""
    target = folder / f"{_PREFIX}{step:08d}"
    aside = folder / f".{target.name}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, aside / "model.safetensors"
    )
    torch.save(optimizer, aside / "optimizer.pt")
    record = {"format_version": FORMAT_VERSION, "step": step, **progress}
    (aside / "progress.json").write_text(json.dumps(record))
    for path in (*aside.iterdir(), aside):
        _flush(path)
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)
    _flush(folder)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Weights, optimiser state and progress of a checkpoint.

    Raises:
        ValueError: a format from the future.
    """
    progress = json.loads((path / "progress.json").read_text())
    if progress["format_version"] > FORMAT_VERSION:
        raise ValueError(f"{path} has format {progress['format_version']}, this clipvid reads up to {FORMAT_VERSION}")
    optimizer = torch.load(path / "optimizer.pt", weights_only=True, map_location="cpu")
    return load_file(path / "model.safetensors"), optimizer, progress


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if path.is_dir())


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
