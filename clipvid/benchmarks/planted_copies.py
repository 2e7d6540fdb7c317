"""Copies of videos that are changed as people change them, to measure how many of them an inspection finds.

Shapes: T frames of H x W pixels.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from clipvid.data.reader import open_video
from clipvid.data.synthetic.encoding import write_frames

_ENCODER = {"preset": "veryfast", "crf": "23"}
_HARD = {"preset": "veryfast", "crf": "32"}
_SCALE, _BAR, _KEPT = 0.7, 0.12, 0.7  # sides of resized copies, bars, and length of trimmed copies, as shares


def _even(number: float) -> int:
    return max(round(number / 2) * 2, 2)


def _resized(frames: Tensor) -> Tensor:
    size = [_even(side * _SCALE) for side in frames.shape[-2:]]
    return F.resize(frames, size, antialias=True)


def _trimmed(frames: Tensor) -> Tensor:
    start = round(len(frames) * (1 - _KEPT) / 2)
    return frames[start : start + max(round(len(frames) * _KEPT), 1)]


def _letterboxed(frames: Tensor) -> Tensor:
    bar = _even(frames.shape[-2] * _BAR)
    return F.pad(frames, [0, bar, 0, bar])


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "copied": lambda frames: frames,
    "re-encoded": lambda frames: frames,
    "resized": _resized,
    "trimmed": _trimmed,
    "mirrored": lambda frames: frames.flip(-1),
    "letterboxed": _letterboxed,
}


def write_copy(source: Path, target: Path, kind: str) -> None:
    """Write a changed copy of a video.

    Args:
        source: Video to copy.
        target: File to write, an mp4 unless the file is copied.
        kind: Key of `CHANGES`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if kind == "copied":
        shutil.copyfile(source, target)
        return
    with open_video(source) as video:
        frames = video.read(torch.arange(len(video))).permute(0, 3, 1, 2)
        rate = round(video.fps or 25)
    height, width = (side // 2 * 2 for side in frames.shape[-2:])
    changed = CHANGES[kind](frames[..., :height, :width])
    pictures: np.ndarray = changed.permute(0, 2, 3, 1).contiguous().numpy()
    size = (pictures.shape[2], pictures.shape[1])
    write_frames(target, pictures, size, rate, _HARD if kind == "re-encoded" else _ENCODER)
