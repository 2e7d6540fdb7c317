"""`clipvid benchmark data`: cost of reading videos.

Compares the training loader with a plain loop, shared decoding of views with separate decoding, and opens a very long
manifest.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.markdown import Markdown
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from clipvid import InputError
from clipvid.data.batches import Key
from clipvid.data.lists.sources import find_videos
from clipvid.data.loader import TrainBatches, VideoDataset, build_loader
from clipvid.data.manifest import Manifest, Sample
from clipvid.data.reader import open_video
from clipvid.data.sampling import FrameSampling, keyed_generator
from clipvid.data.synthetic.encoding import write_frames
from clipvid.data.transforms import eval_transforms, train_transform
from clipvid.decoding.demux import scan_unchanged
from clipvid.evaluation.tables import Table
from clipvid.files import write_json, write_text
from clipvid.runs.config_files import config_record, parse_config
from clipvid.runs.lock import locked
from clipvid.runs.output_folder import prepare_output_dir

CLIPS, CROPS = 4, 3
MEASURE_MANIFEST = """
import json, sys, time
from clipvid.data.batches import TrainBatches
from clipvid.data.manifest import ClassInfo, load_manifest
from clipvid.runs.memory import peak_resident_memory
def peak():
    return peak_resident_memory() / 2**20
classes = [ClassInfo(i, f"class {i}") for i in range(400)]
before, start = peak(), time.perf_counter()
manifest = load_manifest(sys.argv[1], "list.csv", classes, check_files=False)
opened, middle = time.perf_counter() - start, time.perf_counter()
batch = next(iter(TrainBatches(len(manifest), 16, seed=0)))
samples = [manifest.samples[index] for _, index in batch]
print(json.dumps([opened, peak() - before, time.perf_counter() - middle, len(manifest)]))
"""


@dataclass(frozen=True)
class DataBenchmark:
    """Options of the benchmark. Results are ratios within one run.

    Attributes:
        videos: Folder of videos. By default 24 videos of 320 x 240 pixels and 250 frames are generated.
        processes: Processes of the loader and of the plain loop.
        repeats: Repeats of each measurement. The median is reported.
        lines: Lines of the manifest, a CSV of path and label, or 0 to skip it.
    """

    output_dir: str = "outputs/benchmark/data"
    videos: str | None = None
    num_frames: int = 8
    image_size: int = 224
    processes: int = 2
    batch_size: int = 4
    repeats: int = 5
    lines: int = 5_000_000


@dataclass(frozen=True)
class Comparison:
    """Median seconds of clipvid (`ours`) and of a plain loop for the same videos.

    Attributes:
        ratio: Speedup of clipvid.
        bar: Target of the ratio.
    """

    name: str
    ours: float
    plain: float
    ratio: float
    bar: float


def main(args: list[str]) -> None:
    """Run the benchmark. Print the table, and write table.md and metrics.json."""
    config = parse_config(DataBenchmark, args, "clipvid benchmark data")
    output = Path(config.output_dir)
    with locked(output):
        prepare_output_dir(output, config)
        torch.set_num_threads(1)
        root = Path(config.videos) if config.videos is not None else make_videos(output / "videos")
        samples = tuple(Sample(path.relative_to(root).as_posix(), 0) for path in find_videos(root))
        if not samples:
            raise InputError(f"no video in or below {root}")
        manifest = Manifest(samples, (), root)
        rows = [compare_training(manifest, config, 1, first_epoch=True)]
        rows += [compare_training(manifest, config, count) for count in sorted({1, config.processes})]
        rows.append(compare_views(manifest, config))
        long_manifest = measure_manifest(output / "manifest", config.lines) if config.lines else None
        table = render_table(rows, long_manifest, config, len(manifest))
        Console().print(Markdown(table))
        write_text(output / "table.md", table)
        write_json(
            output / "metrics.json",
            {"rows": [asdict(row) for row in rows], "manifest": long_manifest, "config": config_record(config)},
        )


def compare_training(
    manifest: Manifest, config: DataBenchmark, processes: int, first_epoch: bool = False
) -> Comparison:
    """Compare training clips of the loader, with random crops, with a loop that decodes and resizes the same frames.

    Both use the same number of processes. In a first epoch, no file has been scanned before.
    """
    sampling = FrameSampling("uniform", config.num_frames)
    dataset = VideoDataset(manifest, sampling, train_transform(config.image_size), seed=0, training=True)
    passes = 1 if first_epoch else 4
    batches = TrainBatches(len(manifest), config.batch_size, seed=0, repeats=passes)
    loader = build_loader(dataset, batches, processes if processes > 1 else 0)
    keys = [key for batch in TrainBatches(len(manifest), config.batch_size, seed=0, repeats=passes) for key in batch]
    jobs = [(str(manifest.video(key[1])), _indices(manifest, key, sampling), config.image_size) for key in keys]

    def ours() -> None:
        batches.set_position(0)
        if first_epoch:
            scan_unchanged.cache_clear()
        _consume(loader)

    if processes == 1:
        name = f"training, 1 process{', first epoch' if first_epoch else ''}"
        return _compared(name, ours, lambda: _consume(map(_plain, jobs)), config.repeats, 0.9)
    with ProcessPoolExecutor(processes, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        name = f"training, {processes} processes"
        return _compared(name, ours, lambda: _consume(pool.map(_plain, jobs, chunksize=4)), config.repeats, 0.9)


def compare_views(manifest: Manifest, config: DataBenchmark) -> Comparison:
    """Compare 4 x 3 views of the first videos with separate opening and decoding of each view."""
    sampling, chosen = FrameSampling("uniform", config.num_frames), range(min(4, len(manifest)))
    transforms = eval_transforms(config.image_size, num_crops=CROPS)
    dataset = VideoDataset(manifest, sampling, transforms, seed=0, training=False, clips=CLIPS, crops=CROPS)

    def alone(index: int) -> Iterable[Tensor]:
        for clip in range(CLIPS):
            for transform in transforms:
                with open_video(manifest.video(index)) as video:
                    frames = video.read(sampling.indices(len(video), clip=clip, num_clips=CLIPS))
                yield transform(frames.permute(0, 3, 1, 2))

    return _compared(
        f"{CLIPS} x {CROPS} views",
        lambda: _consume(dataset[(0, index)] for index in chosen),
        lambda: _consume(view for index in chosen for view in alone(index)),
        config.repeats,
        3.0,
    )


def measure_manifest(folder: Path, lines: int) -> dict[str, Any]:
    """Return seconds and MiB to open a CSV of this many lines twice, and seconds to shuffle it and take a batch."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "list.csv").open("w") as out:
        out.write("path,label\n")
        out.writelines(f"train/{i % 400:03d}/video_{i:08d}.mp4,{i % 400}\n" for i in range(lines))
    for cached in (folder / "cache").glob("manifests/*"):
        cached.unlink()
    runs = []
    for _ in range(2):
        command = [sys.executable, "-c", MEASURE_MANIFEST, str(folder)]
        environment = os.environ | {"CLIPVID_CACHE": str(folder / "cache")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise InputError(f"opening the manifest failed: {done.stderr.strip().splitlines()[-1]}")
        runs.append([float(part) for part in done.stdout.strip("[]\n").split(",")])
    (first, memory, shuffle, count), (second, *_) = runs
    return {"lines": int(count), "first_s": first, "memory_mib": memory, "second_s": second, "shuffle_s": shuffle}


def render_table(rows: list[Comparison], manifest: dict[str, Any] | None, config: DataBenchmark, videos: int) -> str:
    """Return the comparisons, the figures of the manifest and the settings."""
    table = []
    for row in rows:
        mark = "" if row.ratio >= row.bar else " ✗"
        table.append([row.name, f"{row.ours:.2f}", f"{row.plain:.2f}", f"{row.ratio:.2f}{mark}", str(row.bar)])
    lines = [Table(["", "ours, s", "plain, s", "times as fast", "bar"], table).markdown()]
    lines += [f"{videos} videos, {config.num_frames} frames of {config.image_size} px, median of {config.repeats}."]
    if manifest is not None:
        lines.append(
            f"A CSV manifest of {manifest['lines']:,} lines opens in {manifest['first_s']:.2f} s with "
            f"a peak of {manifest['memory_mib']:.0f} MiB more memory, again in {manifest['second_s']:.2f} s; shuffling "
            f"it and taking a batch: {manifest['shuffle_s']:.2f} s."
        )
    return "\n".join(lines) + "\n"


def _compared(name: str, ours: Callable[[], None], plain: Callable[[], None], repeats: int, bar: float) -> Comparison:
    """Measure both in turns, after a warm-up round."""
    ours()
    plain()
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(repeats):
        for mine, run in ((True, ours), (False, plain)):
            start = time.perf_counter()
            run()
            seconds[mine].append(time.perf_counter() - start)
    ours_s, plain_s = (statistics.median(seconds[mine]) for mine in (True, False))
    return Comparison(name, ours_s, plain_s, plain_s / ours_s, bar)


def _indices(manifest: Manifest, key: Key, sampling: FrameSampling) -> list[int]:
    with open_video(manifest.video(key[1])) as video:
        return sampling.indices(len(video), generator=keyed_generator(0, *key)).tolist()


def _plain(job: tuple[str, list[int], int]) -> Tensor:
    """Decode and resize frames in the simplest way."""
    path, indices, size = job
    try:
        import decord

        frames = torch.from_numpy(decord.VideoReader(path, num_threads=1).get_batch(indices).asnumpy())
    except ImportError:
        with open_video(path) as video:
            frames = video.read(indices)
    return F.resize(frames.permute(0, 3, 1, 2), [size, size], F.InterpolationMode.BICUBIC, antialias=True)


def _consume(items: Iterable[object]) -> None:
    for _ in items:
        pass


def make_videos(folder: Path) -> Path:
    """Generate 24 videos of a drifting picture, 320 x 240 pixels, 250 frames, in a typical encoding."""
    for number in range(24):
        make_video(folder / f"{number:02d}.mp4", number, 250)
    return folder


def make_video(path: Path, seed: int, frames: int, size: tuple[int, int] = (320, 240)) -> None:
    """Write a video of a drifting picture in a typical encoding, unless it exists.

    Args:
        path: File to write.
        seed: Seed of the picture.
        frames: Number of frames, at 25 per second.
        size: Width and height.
    """
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (1, 3, 30, 40), dtype=np.uint8)
    whole = F.resize(torch.from_numpy(coarse), [size[1], size[0]], F.InterpolationMode.BICUBIC)
    picture = whole[0].permute(1, 2, 0).numpy()
    moved = (np.roll(picture, (number, 2 * number), (0, 1)) for number in range(frames))
    write_frames(path, moved, size, 25, {"preset": "veryfast"})
