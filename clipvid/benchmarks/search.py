"""`clipvid benchmark search`: recall of queries that differ only in direction, and time of indexing and search.

Times are CPU seconds of all threads, which other jobs on the machine hardly change.
"""

from __future__ import annotations

import math
import shutil
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track

from clipvid import InputError
from clipvid.benchmarks.cost import describe_machine, run_cost_benchmark
from clipvid.benchmarks.data import make_video
from clipvid.benchmarks.seed_statistics import mean_variance
from clipvid.data.synthetic.world import WorldClass, WorldConfig, build_world, world_classes
from clipvid.decoding.demux import decoded, opened, packets
from clipvid.evaluation.tables import Cell, Figure, Table
from clipvid.hub.loading import from_pretrained
from clipvid.inference.search.building import build_index
from clipvid.inference.search.folder import INDEX, IndexedVideo, write_index
from clipvid.inference.search.index import Index, Moment
from clipvid.inference.search.settings import IndexSettings
from clipvid.model.video_clip import VideoCLIP
from clipvid.registry import FINITE, check_ranges
from clipvid.runs.config_files import parse_config

TOP = 10
_PER_VIDEO = 100  # random windows
_LONG = 180 * 25  # frames


def _world() -> WorldConfig:
    return WorldConfig(train_per_class=0, val_per_class=0, test_per_class=TOP)


@dataclass(frozen=True)
class SearchBenchmark:
    """Options of the benchmark.

    Attributes:
        output_dir: Folder of table.md, metrics.json, the videos and the indexes.
        models: Model folders, trained on the world.
        world: The synthetic world. Its test clips are indexed, with one window for each clip.
        template: Template of the queries.
        window: Seconds of a window of the world.
        sizes: Numbers of random windows to search in.
        width: Values of a random feature.
        repeats: Repeats of each time. The median is reported.
        threads: Threads of the CPU.
    """

    output_dir: str = "outputs/benchmark/search"
    models: list[str] = field(default_factory=lambda: ["outputs/demo/ila", "outputs/demo/mean_pooling"])
    world: WorldConfig = field(default_factory=_world)
    template: str = "a photo of a {}."
    window: float = 3.0
    sizes: list[int] = field(default_factory=lambda: [100_000, 1_000_000])
    width: int = 512
    repeats: int = 3
    threads: int = 1

    def __post_init__(self) -> None:
        check_ranges("benchmark", self, **dict.fromkeys(("width", "repeats", "threads"), (1, FINITE)))
        if any(size < 1 for size in self.sizes):
            raise InputError(f"sizes={self.sizes}: expected numbers of at least 1")
        if "{}" not in self.template:
            raise InputError(f"template={self.template!r}: expected {{}} in place of the class name")


@dataclass(frozen=True)
class ModelFigures:
    """Figures of one model.

    Attributes:
        model: Name of its folder.
        recall: Share of the clips of a class among the first 10 moments of its query, by class.
        excluding: The same, with the reversed motion as the text to avoid.
        reverse: Share of the clips of the reversed motion among the first 10 moments, by class.
        pairs: Object and pair of motions of each class.
        indexing: CPU seconds to index a video of 3 minutes, in windows of 2 s with a hop of 1 s.
        decoding: CPU seconds to decode all frames of this video, without conversion to RGB.
    """

    model: str
    recall: list[float]
    excluding: list[float]
    reverse: list[float]
    pairs: list[str]
    indexing: list[float]
    decoding: list[float]


@dataclass(frozen=True)
class QueryTime:
    """CPU seconds of an exact search in random features, for each repeat."""

    windows: int
    seconds: list[float]


def main(args: list[str]) -> None:
    """Run the subject: tables on the terminal and in table.md, all figures in metrics.json."""
    config = parse_config(SearchBenchmark, args, "clipvid benchmark search")
    run_cost_benchmark(config, measure_search, render_tables)


def measure_search(config: SearchBenchmark) -> list[ModelFigures | QueryTime]:
    """Return the figures of all models, and the times of all sizes.

    Raises:
        InputError: A model has other classes than the world.
    """
    torch.set_num_threads(config.threads)
    output = Path(config.output_dir)
    build_world(config.world, output / "world")
    make_video(output / "long" / "video.mp4", 0, _LONG)
    rows: list[ModelFigures | QueryTime] = [measure_model(folder, config) for folder in config.models]
    return rows + [measure_queries(size, config) for size in config.sizes]


def measure_model(folder: str, config: SearchBenchmark) -> ModelFigures:
    """Index the world and the long video with a model, and search for every class."""
    model, classes, output = from_pretrained(folder), world_classes(config.world), Path(config.output_dir)
    if model.labels != [label.name for label in classes]:
        raise InputError(f"{folder} has {len(model.labels)} classes that are not the {len(classes)} of the world")
    target = output / "index"
    indexing, decoding = [], []
    for _ in track(range(config.repeats), f"indexing, {folder}", console=Console(stderr=True), transient=True):
        shutil.rmtree(target, ignore_errors=True)
        start = time.process_time()
        build_index(output / "long", model, target, num_workers=0)
        indexing.append(time.process_time() - start)
        decoding.append(_seconds_of_decoding(output / "long" / "video.mp4"))
    shutil.rmtree(target, ignore_errors=True)
    index = build_index(output / "world" / "test", model, target, config.window, config.window)
    shares = [_shares(index, model, label, classes[label.partner], config) for label in classes]
    shutil.rmtree(target)
    recall, excluding, reverse = map(list, zip(*shares, strict=True))
    pairs = [f"{label.object} {label.pair}" for label in classes]
    return ModelFigures(Path(folder).name, recall, excluding, reverse, pairs, indexing, decoding)


def _shares(
    index: Index, model: VideoCLIP, label: WorldClass, partner: WorldClass, config: SearchBenchmark
) -> tuple[float, float, float]:
    """Return recall, recall with the partner excluded, and the share of the partner, for the query of a class."""
    own, other = config.template.format(label.name), config.template.format(partner.name)
    plain, excluding = index.search(model, own, top_k=TOP), index.search(model, own, other, top_k=TOP)
    clips = config.world.test_per_class
    return _count(plain, label) / clips, _count(excluding, label) / clips, _count(plain, partner) / clips


def _count(moments: list[Moment], label: WorldClass) -> int:
    return sum(Path(moment.video).parent.name == label.name.replace(" ", "_") for moment in moments)


def _seconds_of_decoding(path: Path) -> float:
    start = time.process_time()
    with opened(str(path)) as (container, stream):
        for _ in decoded(stream, packets(container, stream)):
            pass
    return time.process_time() - start


def measure_queries(size: int, config: SearchBenchmark) -> QueryTime:
    """Measure an exact search in an index of random features. The first search is not counted: it reads the file."""
    folder = Path(config.output_dir) / "random"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    counts = [_PER_VIDEO] * (size // _PER_VIDEO) + [size % _PER_VIDEO] * (size % _PER_VIDEO > 0)
    videos = [IndexedVideo(f"{number}.mp4", 0, 0, count) for number, count in enumerate(counts)]
    times = (np.arange(count)[:, None] + np.array([[0.0, 2.0]]) for count in counts)
    settings = IndexSettings(str(folder), "random", 2.0, 1.0, 8)
    write_index(folder, settings, videos, _random_features(size, config.width), times, config.width)
    index, generator = Index(folder), torch.Generator().manual_seed(1)
    seconds = []
    for _ in range(config.repeats + 1):
        direction = F.normalize(torch.randn(config.width, generator=generator), dim=0)
        start = time.process_time()
        index.nearest(direction, TOP)
        seconds.append(time.process_time() - start)
    (folder / INDEX).unlink()
    del index
    shutil.rmtree(folder, ignore_errors=True)
    return QueryTime(size, seconds[1:])


def _random_features(size: int, width: int) -> Iterator[np.ndarray]:
    generator = torch.Generator().manual_seed(0)
    for first in range(0, size, 2**14):
        features = torch.randn(min(2**14, size - first), width, generator=generator)
        yield F.normalize(features, dim=-1).half().numpy()


def render_tables(rows: list[ModelFigures | QueryTime], config: SearchBenchmark) -> str:
    """Return recall, times of indexing and times of search as tables, and the settings below them."""
    recalls: list[list[Cell]] = []
    costs: list[list[Cell]] = []
    for row in rows:
        if isinstance(row, ModelFigures):
            shares = (row.recall, row.excluding, row.reverse)
            recalls.append([row.model, *(_mean(values, row.pairs) for values in shares)])
            seconds, passes = statistics.median(row.indexing), statistics.median(row.decoding)
            costs.append([f"indexing 3 minutes of video, {row.model}", f"{seconds:.2f}", f"{seconds / passes:.1f}"])
        else:
            costs.append([f"query among {row.windows:,} windows", f"{statistics.median(row.seconds):.3f}", None])
    clips, classes = config.world.test_per_class, len(world_classes(config.world))
    headers = [f"recall@{TOP}", f"recall@{TOP}, --not the reverse", f"reversed clips in the first {TOP}"]
    return "\n".join(
        [
            Table(["", *headers], recalls).markdown(),
            Table(["", "CPU seconds", "times a decode pass"], costs).markdown(),
            f"{classes} queries such as {config.template.format(world_classes(config.world)[0].name)!r}, {clips} clips "
            f"of each class, 95% intervals over objects and pairs of motions; {config.width} values of a random "
            f"feature, median of {config.repeats}; {', '.join(describe_machine().values())}.",
            "",
        ]
    )


def _mean(values: list[float], pairs: list[str]) -> Figure:
    variance, quantile = mean_variance(np.array([values]), pairs)
    half, mean = quantile * math.sqrt(variance), statistics.mean(values)
    return Figure(mean, (max(mean - half, 0.0), min(mean + half, 1.0)), 2)
