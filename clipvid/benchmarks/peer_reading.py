"""Rate of reading videos beside PyAV, decord and torchcodec, by encoding."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np

from clipvid.benchmarks.numbered_videos import RATE, Encoding, write_numbered
from clipvid.benchmarks.peers import OURS, PeerRow, PeersBenchmark, Sample
from clipvid.data.reader import open_video
from clipvid.decoding.demux import scan_unchanged

PYAV, DECORD, TORCHCODEC = "PyAV, from the start", "decord", "torchcodec"
TOOLS = (OURS, PYAV, DECORD, TORCHCODEC)
FRAMES = 250

ENCODINGS = {
    "H.264, 320x240, keyframe every 12": Encoding("libx264", options={"preset": "veryfast", "g": "12"}),
    "H.264, 320x240, keyframe every 250": Encoding("libx264", options={"preset": "veryfast", "g": "250"}),
    "H.264, 1280x720, keyframe every 48": Encoding("libx264", (1280, 720), {"preset": "veryfast", "g": "48"}),
    "H.265, 320x240, keyframe every 48": Encoding(
        "libx265", options={"preset": "veryfast", "x265-params": "log-level=0:keyint=48"}
    ),
    "VP9, 320x240, keyframe every 48": Encoding(
        "libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8", "g": "48"}
    ),
    "MPEG-4, 320x240, keyframe every 12": Encoding("mpeg4", options={"g": "12"}),
}


def measure_reading(config: PeersBenchmark) -> list[PeerRow]:
    """Measure videos per second, of `num_frames` frames spread over each video."""
    indices = np.linspace(0, FRAMES - 1, config.num_frames).round().astype(int).tolist()
    rows = []
    for case, encoding in ENCODINGS.items():
        path = Path(config.output_dir) / "videos" / f"{file_name(case)}.mp4"
        write_numbered(path, [Fraction(number, RATE) for number in range(FRAMES)], encoding)
        ways = {tool: partial(READERS[tool], path, indices) for tool in TOOLS}
        rows += measure_rates(case, ways, config.repeats)
    return rows


def measure_rates(case: str, ways: Mapping[str, Callable[[], Any]], repeats: int, count: int = 8) -> list[PeerRow]:
    """Measure in turns how often each way reads a video in a second. Nothing about the file is remembered."""
    samples: dict[str, list[Sample]] = {tool: [] for tool in ways}
    notes: dict[str, str] = {}
    for turn in range(repeats + 1):
        for tool, read in ways.items():
            if tool in notes:
                continue
            start = time.perf_counter()
            try:
                for _ in range(count if turn else 1):
                    scan_unchanged.cache_clear()
                    read()
            except Exception as error:  # any reason why a peer cannot read a file is a result
                notes[tool] = reason(error)
                continue
            if turn:
                samples[tool].append(Sample(count / (time.perf_counter() - start)))
    return [PeerRow("reading", case, tool, samples[tool], "videos/s", notes.get(tool, "")) for tool in ways]


def read_ours(path: Path, indices: Sequence[int]) -> np.ndarray:
    """Read frames by number with clipvid."""
    with open_video(path) as video:
        return video.read(indices).numpy()


def read_pyav(path: Path, indices: Sequence[int]) -> np.ndarray:
    """Read frames by number with PyAV in the simplest way: decode from the start, and keep the needed ones."""
    needed, kept = set(indices), {}
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number in needed:
                kept[number] = frame.to_ndarray(format="rgb24")
            if number >= max(needed):
                break
    return np.stack([kept[index] for index in indices])


def read_decord(path: Path, indices: Sequence[int]) -> np.ndarray:
    """Read frames by number with decord."""
    import decord

    frames: np.ndarray = decord.VideoReader(str(path), num_threads=1).get_batch(indices).asnumpy()
    return frames


def read_torchcodec(path: Path, indices: Sequence[int]) -> np.ndarray:
    """Read frames by number with torchcodec."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1)
    frames: np.ndarray = decoder.get_frames_at(indices=list(indices)).data.numpy()
    return frames


READERS: dict[str, Callable[[Path, Sequence[int]], np.ndarray]] = {
    OURS: read_ours,
    PYAV: read_pyav,
    DECORD: read_decord,
    TORCHCODEC: read_torchcodec,
}


def file_name(case: str) -> str:
    """Return the name of a case for its file."""
    return "".join(letter if letter.isalnum() else "_" for letter in case)


def reason(error: Exception) -> str:
    """Return in a few words why a tool has no figure."""
    if isinstance(error, ImportError):
        return "not installed"
    return "cannot read it"
