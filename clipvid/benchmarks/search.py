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
from torch import Tensor

from clipvid import InputError
from clipvid.benchmarks.cost import describe_machine, run_cost_benchmark
from clipvid.benchmarks.data import make_video
from clipvid.benchmarks.seed_statistics import mean_variance
from clipvid.data.synthetic.world import WorldClass, WorldConfig, build_world, world_classes
from clipvid.decoding.demux import decoded, opened, packets
from clipvid.evaluation.tables import Cell, Figure, Table
from clipvid.hub.loading import from_pretrained
from clipvid.inference.search.building import build_index
from clipvid.inference.search.folder import INDEX, IndexedVideo, graph_path, read_record, write_index
from clipvid.inference.search.graph import build_graph, check_usearch
from clipvid.inference.search.index import Index, Moment
from clipvid.inference.search.settings import IndexSettings
from clipvid.model.video_clip import VideoCLIP
from clipvid.registry import FINITE, check_ranges
from clipvid.runs.config_files import parse_config

TOP = 10
_PER_VIDEO = 100  # random windows
_RANK = 32  # dimensions of random features; a graph finds no neighbors among directions that are all independent
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
        graph: Also build a graph of usearch for each size, and search in it.
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
    graph: bool = False
    width: int = 512
    repeats: int = 3
    threads: int = 1

    def __post_init__(self) -> None:
        check_ranges("benchmark", self, **dict.fromkeys(("width", "repeats", "threads"), (1, FINITE)))
        if self.graph:
            check_usearch()
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
class GraphFigures:
    """Figures of a graph of usearch.

    Attributes:
        building: CPU seconds to build it.
        seconds: CPU seconds of an approximate search, for each repeat.
        recall: Share of the first 10 exact moments that the approximate search returns, for each repeat.
    """

    building: float
    seconds: list[float]
    recall: list[float]


@dataclass(frozen=True)
class QueryTime:
    """CPU seconds of an exact search in random features, for each repeat."""

    windows: int
    seconds: list[float]
    graph: GraphFigures | None = None


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
    if config.models:
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
    """Measure exact and approximate searches in an index of random features.

    The first search of each kind is not counted: it reads the file.
    """
    folder = Path(config.output_dir) / "random"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    counts = [_PER_VIDEO] * (size // _PER_VIDEO) + [size % _PER_VIDEO] * (size % _PER_VIDEO > 0)
    videos = [IndexedVideo(f"{number}.mp4", 0, 0, count) for number, count in enumerate(counts)]
    times = (np.arange(count)[:, None] + np.array([[0.0, 2.0]]) for count in counts)
    settings = IndexSettings(str(folder), "random", 2.0, 1.0, 8)
    write_index(folder, settings, videos, _random_features(size, config.width), times, config.width)
    index = Index(folder)
    generator = torch.Generator().manual_seed(1)
    directions = _random_directions(config.repeats + 1, config.width, generator)
    seconds, moments = _timed_searches(index, directions)
    graph = None
    if config.graph:
        start = time.process_time()
        build_graph(index.features, graph_path(folder, read_record(folder)))
        building = time.process_time() - start
        approximate, near = _timed_searches(index, directions, approximate=True)
        recall = [len(first & second) / len(first) for first, second in zip(moments, near, strict=True)]
        graph = GraphFigures(building, approximate, recall)
    (folder / INDEX).unlink()
    del index
    shutil.rmtree(folder, ignore_errors=True)
    return QueryTime(size, seconds, graph)


def _timed_searches(
    index: Index, directions: Tensor, approximate: bool = False
) -> tuple[list[float], list[set[tuple[str, float]]]]:
    """Return CPU seconds and results of a search for each direction after the first one."""
    seconds, results = [], []
    for direction in directions:
        start = time.process_time()
        moments = index.nearest(direction, TOP, approximate)
        seconds.append(time.process_time() - start)
        results.append({(moment.video, moment.start) for moment in moments})
    return seconds[1:], results[1:]


def _random_features(size: int, width: int) -> Iterator[np.ndarray]:
    generator = torch.Generator().manual_seed(0)
    for first in range(0, size, 2**14):
        yield _random_directions(min(2**14, size - first), width, generator).half().numpy()


def _random_directions(count: int, width: int, generator: torch.Generator) -> Tensor:
    """Return directions [count, width] in a subspace of `_RANK` dimensions that is always the same."""
    rank = min(_RANK, width)
    basis = torch.randn(rank, width, generator=torch.Generator().manual_seed(2))
    return F.normalize(torch.randn(count, rank, generator=generator) @ basis, dim=-1)


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
            costs += _query_rows(row)
    clips, classes = config.world.test_per_class, len(world_classes(config.world))
    headers = [f"recall@{TOP}", f"recall@{TOP}, --not the reverse", f"reversed clips in the first {TOP}"]
    return "\n".join(
        [
            *([Table(["", *headers], recalls).markdown()] if recalls else []),
            Table(["", "CPU seconds", "times a decode pass"], costs).markdown(),
            f"{classes} queries such as {config.template.format(world_classes(config.world)[0].name)!r}, {clips} clips "
            f"of each class, 95% intervals over objects and pairs of motions; {config.width} values of a random "
            f"feature, median of {config.repeats}; {', '.join(describe_machine().values())}.",
            "",
        ]
    )


def _query_rows(row: QueryTime) -> list[list[Cell]]:
    windows = f"{row.windows:,} windows"
    rows: list[list[Cell]] = [[f"query among {windows}", f"{statistics.median(row.seconds):.3f}", None]]
    if row.graph is not None:
        recall, seconds = statistics.mean(row.graph.recall), statistics.median(row.graph.seconds)
        rows.append([f"approximate query among {windows}, recall@{TOP} {recall:.2f}", f"{seconds:.3f}", None])
        rows.append([f"graph of {windows}", f"{row.graph.building:.0f}", None])
    return rows


def _mean(values: list[float], pairs: list[str]) -> Figure:
    variance, quantile = mean_variance(np.array([values]), pairs)
    half, mean = quantile * math.sqrt(variance), statistics.mean(values)
    return Figure(mean, (max(mean - half, 0.0), min(mean + half, 1.0)), 2)
