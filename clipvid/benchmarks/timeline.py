"""`clipvid benchmark timeline`: seconds and memory of the timeline of a long video, with models that are new."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from clipvid.benchmarks.cost import describe_machine, run_cost_benchmark
from clipvid.benchmarks.data import make_video
from clipvid.benchmarks.fresh_process import in_fresh_process
from clipvid.decoding.demux import decoded, opened, packets
from clipvid.evaluation.tables import Table
from clipvid.inference.predictor import Predictor
from clipvid.model.factory import create_model
from clipvid.registry import FINITE, check_ranges
from clipvid.runs.config_files import parse_config
from clipvid.runs.memory import peak_resident_memory

BARS = {"none": 3.0, "ila": 8.0}  # seconds for `tiny`, 180 s of video, windows of 2 s, a hop of 1 s
_LABELS = ["a ball", "a box", "a star"]


@dataclass(frozen=True)
class TimelineBenchmark:
    """Options of the benchmark. Each measurement has a new process.

    Attributes:
        output_dir: Folder of the results.
        video: File. By default 3 minutes of 320 x 240 pixels and 25 frames per second are generated.
        backbone: See `clipvid.backbone.load_backbone`.
        pretrained: See `clipvid.backbone.load_backbone`.
        adapters: Names of adapters, one row each.
        num_frames: Frames of a clip.
        window: Seconds that a point sees.
        hop: Seconds between points.
        repeats: Repeats of each measurement. The median is reported.
        threads: Threads of the CPU.
    """

    output_dir: str = "outputs/benchmark/timeline"
    video: str | None = None
    backbone: str = "tiny"
    pretrained: str | None = None
    adapters: list[str] = field(default_factory=lambda: list(BARS))
    num_frames: int = 8
    window: float = 2.0
    hop: float = 1.0
    repeats: int = 3
    threads: int = 2

    def __post_init__(self) -> None:
        check_ranges("benchmark", self, **dict.fromkeys(("num_frames", "repeats", "threads"), (1, FINITE)))


@dataclass(frozen=True)
class TimelineCost:
    """Cost of one adapter, one figure for each repeat.

    Attributes:
        adapter: Its name.
        seconds: Of the whole timeline.
        first: Seconds to the first point.
        memory: MB by which the timeline raises the peak memory above that of the model.
        decoding: Seconds to decode all frames, without conversion to RGB.
        points: Number of points.
    """

    adapter: str
    seconds: list[float]
    first: list[float]
    memory: list[float]
    decoding: list[float]
    points: int


def main(args: list[str]) -> None:
    """Run the subject: a table on the terminal and in table.md, all figures in metrics.json."""
    config = parse_config(TimelineBenchmark, args, "clipvid benchmark timeline")
    run_cost_benchmark(config, measure_timelines, render_table)


def measure_timelines(config: TimelineBenchmark) -> list[TimelineCost]:
    """Measure all adapters in turns."""
    path = Path(config.output_dir) / "video.mp4" if config.video is None else Path(config.video)
    if config.video is None:
        make_video(path, 0, 180 * 25)
    measured: dict[str, list[tuple[float, ...]]] = {name: [] for name in config.adapters}
    for _ in track(range(config.repeats), "timelines", console=Console(stderr=True), transient=True):
        for name, figures in measured.items():
            figures.append(in_fresh_process(measure_one, config, name, str(path)))
    rows = []
    for name, figures in measured.items():
        seconds, first, memory, decoding, points = map(list, zip(*figures, strict=True))
        rows.append(TimelineCost(name, seconds, first, memory, decoding, int(points[0])))
    return rows


def measure_one(config: TimelineBenchmark, adapter: str, path: str) -> tuple[float, ...]:
    """Return seconds, seconds to the first point, MB, seconds of decoding, and the number of points."""
    torch.set_num_threads(config.threads)
    model = create_model(
        config.backbone, config.pretrained, adapter=adapter, num_frames=config.num_frames, labels=_LABELS
    )
    predictor = Predictor(model.eval())
    before, start = peak_resident_memory(), time.perf_counter()
    points = predictor.iter_timeline(path, config.window, config.hop)
    next(points)
    first = time.perf_counter() - start
    count = 1 + sum(1 for _ in points)
    seconds, memory = time.perf_counter() - start, (peak_resident_memory() - before) / 1e6
    start = time.perf_counter()
    with opened(path) as (container, stream):
        for _ in decoded(stream, packets(container, stream)):
            pass
    return seconds, first, memory, time.perf_counter() - start, count


def render_table(rows: list[TimelineCost], config: TimelineBenchmark) -> str:
    """Return the rows and, below them, the settings. `4.00 (≤ 3) ✗` is a missed bar."""
    standard = TimelineBenchmark(repeats=config.repeats, output_dir=config.output_dir, adapters=config.adapters)
    table = []
    for row in rows:
        seconds, bar = statistics.median(row.seconds), BARS.get(row.adapter) if config == standard else None
        shown = f"{seconds:.2f}" if bar is None else f"{seconds:.2f} (≤ {bar:g}){'' if seconds <= bar else ' ✗'}"
        others = (row.first, row.memory, row.decoding)
        table.append([row.adapter, shown, *(f"{statistics.median(values):.3g}" for values in others)])
    what = f"{config.backbone}, {config.num_frames} frames, window {config.window:g} s, hop {config.hop:g} s"
    return "\n".join(
        [
            Table(["", "seconds", "to the first point", "MB above the model", "decoding alone"], table).markdown(),
            f"{what}, {rows[0].points} points, median of {config.repeats} new processes; "
            f"{config.threads} threads of the CPU, {describe_machine()['torch']}.",
            "",
        ]
    )
