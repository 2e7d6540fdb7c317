"""`clipvid benchmark cache`: seconds of an epoch with and without stored features of the frozen part of the model."""

from __future__ import annotations

import dataclasses
import os
import shutil
import statistics
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import track

from clipvid.backbone import RANDOM
from clipvid.benchmarks.cost import describe_machine, run_cost_benchmark
from clipvid.data.config import DataConfig
from clipvid.data.feature_store import FeatureStore
from clipvid.data.manifest import Manifest
from clipvid.data.splits import load_split
from clipvid.data.synthetic.world import WorldConfig
from clipvid.evaluation.tables import Table
from clipvid.files import cache_folder
from clipvid.model.config import ModelConfig
from clipvid.registry import FINITE, build_config, check_ranges
from clipvid.runs.config_files import parse_config
from clipvid.training.build import build_trainer, classification
from clipvid.training.config import FinetuneConfig, TrainingConfig
from clipvid.training.session import fresh_model

ROWS: dict[str, dict[str, Any]] = {
    "linear head": {"adapter": "none", "tune": ["head"], "later": 30.0},
    "st_adapter, last 2 blocks": {
        "adapter": {"name": "st_adapter", "layers": [-2, -1], "place": "before_attention"},
        "later": 2.2,
    },
    "ila, last 2 blocks": {"adapter": {"name": "ila", "layers": [-2, -1]}, "later": 1.6},
}
FIRST_BAR = 1.05


@dataclass(frozen=True)
class Row:
    """One kind of model.

    Attributes:
        adapter: See `ModelConfig`.
        tune: See `ModelConfig`.
        later: Lowest speedup of later epochs over epochs without stored features. None for no bar.
    """

    adapter: Any = "none"
    tune: list[Any] = field(default_factory=lambda: ["adapters", "head"])
    later: float | None = None


@dataclass(frozen=True)
class CacheBenchmark:
    """Epochs of fine-tuning on clips of the synthetic world, without evaluation and checkpoints.

    Attributes:
        output_dir: Folder of the results.
        backbone: See `clipvid.backbone.load_backbone`.
        pretrained: See `clipvid.backbone.load_backbone`. Random weights cost as much as trained ones.
        rows: Fields of `Row` by name.
        num_frames: Frames of a clip.
        clips: Clips of an epoch.
        batch_size: Clips of a step.
        repeats: Number of later epochs. Their median counts.
        threads: Threads of the CPU. None for the number that torch chooses.
    """

    output_dir: str = "outputs/benchmark/cache"
    backbone: str = "ViT-B-32"
    pretrained: str | None = RANDOM
    rows: dict[str, dict[str, Any]] = field(default_factory=lambda: dict(ROWS))
    num_frames: int = 8
    clips: int = 32
    batch_size: int = 8
    repeats: int = 3
    threads: int | None = None

    def __post_init__(self) -> None:
        check_ranges("benchmark", self, **dict.fromkeys(("clips", "batch_size", "repeats", "num_frames"), (1, FINITE)))
        for name, options in self.rows.items():
            build_config(Row, options, f"row {name!r}")


@dataclass(frozen=True)
class EpochTimes:
    """Seconds of one row: epochs without stored features, the epoch that stores them, and epochs that read them."""

    name: str
    without: list[float]
    first: list[float]
    later: list[float]
    bytes_per_clip: int

    @property
    def first_ratio(self) -> float:
        """Return the time of the storing epoch, relative to one without."""
        return statistics.median(self.first) / statistics.median(self.without)

    @property
    def speedup(self) -> float:
        """Return how much quicker an epoch that reads is."""
        return statistics.median(self.without) / statistics.median(self.later)


def main(args: list[str]) -> None:
    """Run the subject: a table on the terminal and in table.md, all figures in metrics.json."""
    config = parse_config(CacheBenchmark, args, "clipvid benchmark cache")
    run_cost_benchmark(config, measure_cache, render_table)


def measure_cache(config: CacheBenchmark) -> list[EpochTimes]:
    """Measure all rows, one after another."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with TemporaryDirectory() as folder, _cache_in(Path(folder)):
        world = WorldConfig(motions=("horizontal",), train_per_class=4, val_per_class=1, test_per_class=0)
        data = DataConfig(str(Path(folder) / "world"), world=world, num_workers=0)
        manifest = load_split(data, "train")
        manifest = manifest.subset(range(min(config.clips, len(manifest))))
        return [_measure(config, name, data, manifest, Path(folder)) for name in config.rows]


def _measure(config: CacheBenchmark, name: str, data: DataConfig, manifest: Manifest, folder: Path) -> EpochTimes:
    """Measure one row, in rounds, so that a slow spell of the machine meets all kinds of epoch."""
    row = build_config(Row, config.rows[name], f"row {name!r}")
    names: dict[str, Any] = {"backbone": config.backbone, "pretrained": config.pretrained, "head": "linear"}
    chosen = ModelConfig(adapter=row.adapter, tune=row.tune, num_frames=config.num_frames, **names)
    run, accelerator = FinetuneConfig(model=chosen, data=data), Accelerator()
    model = fresh_model(run, manifest, accelerator)

    def epochs(count: int, choice: Any) -> list[float]:
        training = TrainingConfig(
            epochs=count, per_device_train_batch_size=config.batch_size, cache_views=1, cache_features=choice
        )
        settings = dataclasses.replace(run, training=training)
        objective = classification(settings, manifest)
        with TemporaryDirectory(dir=folder) as output, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            trainer = build_trainer(settings, model, objective, manifest, accelerator, Path(output), keep_features=True)
            ends = [0.0]

            def on_epoch_end(epoch: int) -> dict[str, Any]:
                ends.append(trainer.throughput()["training_seconds"])
                return {}

            trainer.run(on_epoch_end=on_epoch_end)
        return [end - start for start, end in pairwise(ends)]

    times: dict[str, list[float]] = {"without": [], "first": [], "later": []}
    epochs(1, "off")  # not counted: the first passes through a model are slower
    stored = cache_folder() / "features"
    for _ in track(range(config.repeats), name, console=Console(stderr=True), transient=True):
        times["without"] += epochs(1, "off")
        shutil.rmtree(stored, ignore_errors=True)
        first, later = epochs(2, 100.0)
        times["first"].append(first)
        times["later"].append(later)
    return EpochTimes(name, **times, bytes_per_clip=FeatureStore(stored, 0).size() // len(manifest))


@contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    """Let `folder` be the folder of all caches within the block."""
    before = os.environ.get("CLIPVID_CACHE")
    os.environ["CLIPVID_CACHE"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("CLIPVID_CACHE")
        os.environ.update({} if before is None else {"CLIPVID_CACHE": before})


def render_table(rows: list[EpochTimes], config: CacheBenchmark) -> str:
    """Return the rows and, below them, the settings. `2.00 (≥ 2.2) ✗` is a missed bar."""
    table = []
    for row in rows:
        bar = build_config(Row, config.rows[row.name], row.name).later
        later = f"{row.speedup:.2f}" if bar is None else _beside(row.speedup, f"≥ {bar:g}", row.speedup >= bar)
        first = _beside(row.first_ratio, f"≤ {FIRST_BAR:g}", row.first_ratio <= FIRST_BAR)
        seconds = f"{statistics.median(row.without):.3g}"
        table.append([row.name, later, first, seconds, f"{row.bytes_per_clip / 2**10:.0f}"])
    what = f"{config.backbone}, {config.num_frames} frames, batch {config.batch_size}, {config.clips} clips"
    return "\n".join(
        [
            Table(["", "later epochs", "first epoch", "s without", "KiB per clip"], table).markdown(),
            f"{what}, median of {config.repeats}; {', '.join(describe_machine().values())}.",
            "Later epochs: how many times quicker than an epoch without stored features. First epoch: its time, "
            "relative to an epoch without.",
            "",
        ]
    )


def _beside(value: float, bar: str, is_met: bool) -> str:
    return f"{value:.2f} ({bar}){'' if is_met else ' ✗'}"
