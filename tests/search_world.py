"""Folder of videos and their index, for the tests of search."""

import hashlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from test_timeline import RATES, write_video

import clipvid
from clipvid.data.reader import open_video
from clipvid.inference.clips import ClipReader

WINDOW, HOP = 1.0, 0.4


def write_videos(folder: Path) -> Path:
    """Write a video of each rate, one of them in a subfolder."""
    (folder / "more").mkdir()
    for name, times in RATES.items():
        write_video(folder / ("more" if name == "gap" else "") / f"{name}.mp4", times)
    return folder


def build(folder: Path, model, output: Path, num_workers: int = 0, **options) -> clipvid.Index:
    """Build an index with the window and hop of these tests."""
    return clipvid.build_index(folder, model, output, WINDOW, HOP, num_workers, **options)


def files_of(folder: Path) -> dict[str, str]:
    """Return the hash of every file in a folder by its name."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read_one_by_one(model, path: Path) -> tuple[list[tuple[float, float]], torch.Tensor]:
    """Return times and features of the windows of a video, each read and encoded alone."""
    reader = ClipReader.create(model.num_frames, model.image_size, model.preprocessing)
    with open_video(path) as video:
        last = max(video.duration - WINDOW, 0)
        starts = [*np.arange(0, last - 1e-6, max(HOP, video.duration / len(video))), last]
        times, features = [], []
        for start in starts:
            part = video.frames_between(start, start + WINDOW)
            clip = reader.read(video, start=part.start, stop=part.stop)
            with torch.no_grad():
                features.append(F.normalize(model.encode_video(clip), dim=-1)[0])
            times.append((start, min(start + WINDOW, video.duration)))
    return times, torch.stack(features)
