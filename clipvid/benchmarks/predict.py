"""`clipvid benchmark predict`: videos per second of `Predictor.stream`, of its reader and of its model; peak memory."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from rich.console import Console
from rich.progress import track
from torch import Tensor

from clipvid import InputError
from clipvid.benchmarks.cost import describe_machine, run_cost_benchmark
from clipvid.benchmarks.data import make_video, make_videos
from clipvid.benchmarks.fresh_process import in_fresh_process
from clipvid.data.lists.sources import find_videos
from clipvid.evaluation.tables import Table
from clipvid.inference.clips import ClipReader
from clipvid.inference.predictor import Predictor
from clipvid.inference.stream import read_clips
from clipvid.inference.videos import open_source
from clipvid.model.factory import create_model
from clipvid.registry import FINITE, check_ranges
from clipvid.runs.config_files import parse_config
from clipvid.runs.memory import peak_resident_memory

RATE_BAR, MEMORY_BAR = 0.9, 0.4
_LABELS = ["a ball", "a box", "a star"]


@dataclass(frozen=True)
class PredictBenchmark:
    """Options of the benchmark. The rates are measured in turns.

    By default the reader has one process and the model one thread. On two cores, each thus has a core in all
    measurements. If reader and model alone would each use all cores, together they cannot keep both rates.

    Attributes:
        output_dir: Folder of the results.
        videos: Folder of videos. By default 24 videos of 320 x 240 pixels and 250 frames are generated.
        backbone: See `clipvid.backbone.load_backbone`.
        pretrained: See `clipvid.backbone.load_backbone`.
        adapter: See `ModelConfig`.
        num_frames: Frames of a clip.
        batch_size: Clips in one pass of the model.
        num_workers: Reading processes.
        passes: How often the videos are predicted in one measurement.
        repeats: Repeats of each measurement. The median is reported.
        threads: Threads of the CPU. None for the number that torch chooses.
        memory: Also measure the peak memory of a video of 3840 x 2160 pixels, with 32 frames and 4 views.
    """

    output_dir: str = "outputs/benchmark/predict"
    videos: str | None = None
    backbone: str = "tiny"
    pretrained: str | None = None
    adapter: str = "none"
    num_frames: int = 8
    batch_size: int = 8
    num_workers: int = 1
    passes: int = 4
    repeats: int = 5
    threads: int | None = 1
    memory: bool = True

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("num_frames", "batch_size", "passes", "repeats"), (1, FINITE))
        check_ranges("benchmark", self, num_workers=(0, FINITE), **counts)


@dataclass(frozen=True)
class Rates:
    """Videos per second of each repeat.

    Attributes:
        stream: `Predictor.stream`.
        reader: Its reading processes alone.
        model: The model alone, on batches of clips in memory.
        single: `Predictor`, one video at a time.
        memory: Peak memory in GB that the large video adds to the model, or None.
    """

    stream: list[float]
    reader: list[float]
    model: list[float]
    single: list[float]
    memory: float | None

    @property
    def ratio(self) -> float:
        """Rate of the stream, relative to the smaller one of reader and model. The median over the repeats."""
        rounds = zip(self.stream, self.reader, self.model, strict=True)
        return statistics.median(stream / min(reader, model) for stream, reader, model in rounds)


def main(args: list[str]) -> None:
    """Run the subject: a table on the terminal and in table.md, all figures in metrics.json."""
    config = parse_config(PredictBenchmark, args, "clipvid benchmark predict")
    run_cost_benchmark(config, measure_predict, render_table)


def measure_predict(config: PredictBenchmark) -> list[Rates]:
    """Measure all rates in turns, after a first turn that is not counted."""
    output = Path(config.output_dir)
    folder = Path(config.videos) if config.videos is not None else make_videos(output / "videos")
    videos = list(find_videos(folder)) * config.passes
    if not videos:
        raise InputError(f"no video in or below {folder}")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    predictor = _predictor(config.backbone, config.pretrained, config.adapter, config.num_frames, 1)
    ways = _ways(config, predictor, videos)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in track(range(config.repeats + 1), "rates", console=Console(stderr=True), transient=True):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            if turn:
                rates[name].append(len(videos) / (time.perf_counter() - start))
    memory = None
    if config.memory:
        large = output / "large.mp4"
        make_video(large, 0, 130, (3840, 2160))
        memory = in_fresh_process(peak_of_one_video, str(large), 32, 4) / 1e9
    return [Rates(**rates, memory=memory)]


def peak_of_one_video(path: str, num_frames: int, views: int) -> int:
    """Return the bytes by which one video raises the peak memory of this process above that of the model."""
    predictor = _predictor("tiny", None, "none", num_frames, views)
    predictor(torch.zeros(num_frames, 64, 64, 3, dtype=torch.uint8))
    before = peak_resident_memory()
    predictor(path)
    return peak_resident_memory() - before


def render_table(rows: list[Rates], config: PredictBenchmark) -> str:
    """Return the rates and, below them, the settings. `0.80 (≥ 0.9) ✗` is a missed bar."""
    (rates,) = rows
    table = [
        ["stream", _median(rates.stream)],
        ["its reader alone", _median(rates.reader)],
        ["its model alone", _median(rates.model)],
        ["one video at a time", _median(rates.single)],
        ["stream / smaller of reader and model", _beside(rates.ratio, f"≥ {RATE_BAR:g}", rates.ratio >= RATE_BAR)],
    ]
    if rates.memory is not None:
        shown = _beside(rates.memory, f"≤ {MEMORY_BAR:g}", rates.memory <= MEMORY_BAR)
        table.append(["GB above the model: 3840x2160, 32 frames, 4 views", shown])
    what = f"{config.backbone}, {config.adapter}, {config.num_frames} frames, batch {config.batch_size}"
    return "\n".join(
        [
            Table(["", "videos/s"], table).markdown(),
            f"{what}, {config.num_workers} reading processes, median of {config.repeats}; "
            f"{', '.join(describe_machine().values())}.",
            "",
        ]
    )


def _predictor(backbone: str, pretrained: str | None, adapter: str, num_frames: int, views: int) -> Predictor:
    model = create_model(backbone, pretrained, adapter=adapter, num_frames=num_frames, labels=_LABELS)
    return Predictor(model.eval().to(PartialState().device), views)


def _ways(config: PredictBenchmark, predictor: Predictor, videos: list[Path]) -> dict[str, Callable[[], None]]:
    clips = _clips(predictor.reader, videos, config.batch_size)

    def stream() -> None:
        for item in predictor.stream(videos, batch_size=config.batch_size, num_workers=config.num_workers):
            if item.error is not None:
                raise item.error

    def reader() -> None:
        for _ in read_clips(predictor.reader, 1, videos, config.batch_size, config.num_workers):
            pass

    @torch.no_grad()
    def model() -> None:
        for _ in range(math.ceil(len(videos) / config.batch_size)):
            predictor.model(clips.to(predictor.model.pixel_mean.device)).logits.softmax(dim=-1).cpu()

    def single() -> None:
        for video in videos:
            predictor(video)

    return {"stream": stream, "reader": reader, "model": model, "single": single}


def _clips(reader: ClipReader, videos: list[Path], count: int) -> Tensor:
    clips = []
    for number in range(count):
        with open_source(videos[number % len(videos)]) as video:
            clips.append(reader.read(video)[0])
    return torch.stack(clips)


def _median(values: list[float]) -> str:
    return f"{statistics.median(values):.3g}"


def _beside(value: float, bar: str, is_met: bool) -> str:
    return f"{value:.2f} ({bar}){'' if is_met else ' ✗'}"
