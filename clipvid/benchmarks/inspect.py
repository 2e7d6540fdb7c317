"""`clipvid benchmark inspect`: what an inspection finds of what was planted, and what it costs.

The synthetic world gives classes that need order (its motions) and classes that do not (its objects). Wrong labels and
copies are planted by seed. `also` measures verdict, wrong labels and time on other data.
"""

from __future__ import annotations

import csv
import dataclasses
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from clipvid import InputError
from clipvid.benchmarks.cost import describe_machine, run_cost_benchmark
from clipvid.benchmarks.planted_copies import CHANGES, write_copy
from clipvid.data.dataset import VideoDataset
from clipvid.data.sampling import FrameSampling, keyed_generator
from clipvid.data.synthetic.world import WorldConfig, build_world, world_classes
from clipvid.data.transforms import eval_transform
from clipvid.decoding.demux import scan_unchanged
from clipvid.evaluation.tables import Table
from clipvid.files import write_text
from clipvid.inspection.clips import ClipList, read_clips
from clipvid.inspection.config import InspectConfig
from clipvid.inspection.features import FrozenTower, Readings, load_tower, read_all
from clipvid.inspection.findings import check_labels, find_copies
from clipvid.inspection.run import examine, write_results
from clipvid.inspection.tasks import ProbeTask
from clipvid.inspection.time import BAG, ORDERED, SINGLE
from clipvid.runs.config_files import parse_config

MOTIONS, OBJECTS = "motions of the world", "objects of the world"


@dataclass(frozen=True)
class InspectBenchmark:
    """Options of the benchmark.

    Attributes:
        output_dir: Folder of table.md and metrics.json, and of the world.
        clips_per_class: Clips of each of the 40 classes of the world.
        copies: Copies planted among them, of six kinds in turn.
        wrong_labels: Share of labels that are replaced by others.
        seeds: Draws of wrong labels; precisions are means over them.
        num_frames: Frames per clip.
        passes: Passes that are timed, of which the fastest counts.
        also: Further data, each with the options of `clipvid inspect`.
    """

    output_dir: str = "outputs/benchmark/inspect"
    clips_per_class: int = 12
    copies: int = 48
    wrong_labels: float = 0.05
    seeds: int = 3
    num_frames: int = 8
    passes: int = 2
    also: list[InspectConfig] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.clips_per_class < 5 or self.seeds < 1 or self.passes < 1:
            raise InputError("clips_per_class must be at least 5, seeds and passes at least 1")
        if not 0 < self.wrong_labels < 0.5:
            raise InputError(f"wrong_labels={self.wrong_labels}: expected a share between 0 and 0.5")
        if not 0 < self.copies <= 40 * self.clips_per_class:
            raise InputError(f"copies={self.copies}: expected 1 to {40 * self.clips_per_class}, the number of clips")


@dataclass(frozen=True)
class InspectFigure:
    """A measured figure.

    Attributes:
        data: Name of the data.
        measure: Name of the measure.
        value: The figure as text.
        detail: What it is made of.
    """

    data: str
    measure: str
    value: str
    detail: str = ""


def main(args: list[str]) -> None:
    """Run the benchmark. Print the table, and write table.md and metrics.json."""
    config = parse_config(InspectBenchmark, args, "clipvid benchmark inspect")
    run_cost_benchmark(config, lambda own: list(measure_inspection(own)), render_table)


def measure_inspection(config: InspectBenchmark) -> Iterator[InspectFigure]:
    """Yield the figures of the world, then those of `also`."""
    root = Path(config.output_dir) / "world"
    world = WorldConfig(train_per_class=config.clips_per_class, val_per_class=0, test_per_class=0)
    build_world(world, root)
    lists = {MOTIONS: _write_list(root, world, "motion"), OBJECTS: _write_list(root, world, "object")}
    options: dict[str, Any] = {"num_frames": config.num_frames, "num_workers": 0}
    tower: FrozenTower | None = None
    with tempfile.TemporaryDirectory() as stored:  # the lists share videos, which are read once
        folder = Path(stored)
        for name, path in lists.items():
            inspect = InspectConfig(path=str(path), classes=path.with_suffix(".txt").name, **options)
            tower = tower or load_tower(inspect)
            yield from _measure_set(name, inspect, tower, config, folder, with_time=name == MOTIONS)
        copies = _plant_copies(root, lists[MOTIONS], config.copies)
        assert tower is not None
        inspect = InspectConfig(path=str(copies), classes=lists[MOTIONS].with_suffix(".txt").name, **options)
        clips = read_clips(inspect)
        yield from measure_copies(clips, read_all(clips, tower, inspect, folder=folder))
        for inspect in config.also:
            yield from _measure_set(str(inspect.path), inspect, load_tower(inspect), config, folder, with_time=True)


def _measure_set(
    name: str, inspect: InspectConfig, tower: FrozenTower, config: InspectBenchmark, folder: Path, with_time: bool
) -> Iterator[InspectFigure]:
    clips = read_clips(inspect)
    result = examine(clips, tower, inspect, folder=folder)
    task, motion = result.task, result.motion
    if isinstance(task, str) or motion is None:
        raise InputError(f"{name}: {task}")
    shown = ", ".join(f"{probe} {motion.accuracy[probe].value:.3f}" for probe in (SINGLE, BAG, ORDERED))
    yield InspectFigure(name, "needs", motion.need, f"{len(clips)} clips, {shown}, {len(motion.pairs)} pairs in order")
    precision = [wrong_label_precision(task, config.wrong_labels, seed) for seed in range(config.seeds)]
    listed = ", ".join(f"{value:.2f}" for value in precision)
    count = round(config.wrong_labels * len(task.labels))
    yield InspectFigure(
        name, "wrong labels, precision", f"{sum(precision) / len(precision):.2f}", f"{count} planted: {listed}"
    )
    if with_time:
        seconds, plain = inspection_times(clips, tower, inspect, config.passes)
        yield InspectFigure(name, "time by one plain pass", f"{seconds / plain:.2f}", f"{seconds:.1f} s, {plain:.1f} s")


def inspection_times(clips: ClipList, tower: FrozenTower, inspect: InspectConfig, passes: int) -> tuple[float, float]:
    """Return the processor seconds of an inspection and of a plain pass, in turn, the least of several passes each.

    Neither knows the files from before. The inspection stores its features in an empty folder, and writes its report.
    """
    inspected, plain = [], []
    for _ in range(passes):
        scan_unchanged.cache_clear()
        started = time.process_time()
        plain_pass(clips, tower, inspect)
        plain.append(time.process_time() - started)
        scan_unchanged.cache_clear()
        with tempfile.TemporaryDirectory() as folder:
            started = time.process_time()
            result = examine(clips, tower, inspect, enabled=False, folder=Path(folder))
            write_results(result, inspect, Path(folder))
            inspected.append(time.process_time() - started)
    return min(inspected), min(plain)


def wrong_label_precision(task: ProbeTask, share: float, seed: int) -> float:
    """Return the share of planted labels among the most suspicious ones, as many as were planted.

    Args:
        task: Clips whose labels count as right.
        share: Share of labels to replace.
        seed: Seed of the draws.
    """
    generator = keyed_generator(seed)
    count = max(round(share * len(task.labels)), 1)
    planted = torch.randperm(len(task.labels), generator=generator)[:count]
    present = task.labels.unique()
    place = {label: number for number, label in enumerate(present.tolist())}
    labels = task.labels.clone()
    steps = torch.randint(1, len(present), (count,), generator=generator)
    for clip, step in zip(planted.tolist(), steps.tolist(), strict=True):
        labels[clip] = present[(place[int(labels[clip])] + step) % len(present)]
    check = check_labels(dataclasses.replace(task, labels=labels))
    wrong = {task.places[clip] for clip in planted.tolist()}
    return sum(own.place in wrong for own in check.suspects[:count]) / count


def measure_copies(clips: ClipList, readings: Readings) -> Iterator[InspectFigure]:
    """Yield recall and precision of planted copies, and how many of the found ones have the right name."""
    paths = [clips.sample(index).path for index in range(len(clips))]
    planted = {(_source_of(path), path): Path(path).name.split("~")[1] for path in paths if path.startswith("copies/")}
    changes = {}
    for copy in find_copies(readings):
        first, second = sorted((paths[copy.first], paths[copy.second]), key=lambda path: path.startswith("copies/"))
        changes[first, second] = copy.changes or ("copied",)
    right = changes.keys() & planted.keys()
    missed = [planted[pair] for pair in planted.keys() - right]
    data = f"{len(planted)} copies among {len(clips) - len(planted)} clips"
    lost = ", ".join(f"{missed.count(kind)} {kind}" for kind in dict.fromkeys(missed))
    yield InspectFigure(data, "recall", f"{len(right) / len(planted):.3f}", f"missed: {lost or 'none'}")
    precision = len(right) / len(changes) if changes else 0.0
    yield InspectFigure(data, "precision", f"{precision:.3f}", f"{len(changes)} pairs named")
    named = sum(planted[pair] in changes[pair] for pair in right)
    yield InspectFigure(data, "named as planted", f"{named} of {len(right)}", "of the pairs that are copies")
    mirrored = [pair for pair in right if planted[pair] == "mirrored"]
    hits = sum("mirrored" in changes[pair] for pair in mirrored)
    yield InspectFigure(data, "mirrored, named so", f"{hits} of {len(mirrored)}")


def plain_pass(clips: ClipList, tower: FrozenTower, inspect: InspectConfig) -> None:
    """Decode the frames of each clip and encode them in batches, in this process."""
    for manifest in clips.splits.values():
        dataset = VideoDataset(
            manifest,
            FrameSampling("uniform", inspect.num_frames),
            eval_transform(tower.image_size),
            seed=0,
            training=False,
        )
        for start in range(0, len(dataset), inspect.batch_size):
            items = [dataset[0, index] for index in range(start, min(start + inspect.batch_size, len(dataset)))]
            frames = [item["frames"][0] for item in items if item["readable"]]
            if frames:
                tower(torch.stack(frames))


def render_table(figures: Sequence[InspectFigure], config: InspectBenchmark) -> str:
    """Return the figures and the settings below them."""
    rows = [[own.data, own.measure, own.value, own.detail] for own in figures]
    table = Table(["data", "measure", "figure", "detail"], rows, text_columns=4).markdown()
    settings = (
        f"{config.clips_per_class} clips of each class of the world, {config.num_frames} frames, "
        f"{config.wrong_labels:.0%} wrong labels, {config.seeds} draws; {', '.join(describe_machine().values())}."
    )
    return f"{table}\n{settings}\n"


def _write_list(root: Path, world: WorldConfig, attribute: str) -> Path:
    """Write a list of the world's clips with an attribute of their class as the label, and a list of the labels."""
    rows = [
        (f"train/{label.name.replace(' ', '_')}/{index:04d}.mp4", getattr(label, attribute))
        for label in world_classes(world)
        for index in range(world.train_per_class)
    ]
    names = sorted({name for _, name in rows})
    write_text(root / f"{attribute}s.txt", "".join(f"{name}\n" for name in names))
    return _write_rows(root / f"{attribute}s.csv", rows)


def _write_rows(path: Path, rows: Sequence[tuple[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out, lineterminator="\n").writerows([("path", "label"), *rows])
    return path


def _plant_copies(root: Path, listed: Path, count: int) -> Path:
    """Write copies of clips that are spread over a list, and return the list with them."""
    with listed.open(encoding="utf-8", newline="") as file:
        rows = [(row["path"], row["label"]) for row in csv.DictReader(file)]
    kinds = list(CHANGES)
    planted = []
    for number in range(count):
        path, label = rows[number * len(rows) // count]
        kind = kinds[number % len(kinds)]
        target = f"copies/{path.replace('/', '=')}~{kind}~.mp4"
        if not (root / target).exists():
            write_copy(root / path, root / target, kind)
        planted.append((target, label))
    return _write_rows(root / "copies.csv", rows + planted)


def _source_of(path: str) -> str:
    """Return the path of the clip that a planted copy is made of."""
    return Path(path).name.split("~")[0].replace("=", "/")
