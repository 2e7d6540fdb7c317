"""`clipvid benchmark peers`: clipvid beside what a user would pick instead, as ratios within one run.

`training` compares a step of the same tower with a bare loop, transformers' `Trainer` and open_clip's training step.
`reading` compares videos per second with PyAV, decord and torchcodec, and `exactness` the frames at asked times.
`predicting` compares a folder of videos with transformers' pipeline, and `startup` the first answer of commands.
"""

from __future__ import annotations

import importlib
import os
import statistics
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby

import torch
from rich.console import Console
from rich.progress import track

from clipvid import InputError
from clipvid.backbone import RANDOM
from clipvid.benchmarks.cost import describe_machine, run_cost_benchmark
from clipvid.evaluation.tables import Table
from clipvid.registry import FINITE, check_option, check_ranges
from clipvid.runs.config_files import parse_config

PARTS = ("training", "reading", "exactness", "predicting", "startup")
OURS = "clipvid"
PACKAGES = ("transformers", "accelerate", "open_clip_torch", "decord", "av", "torchcodec")


@dataclass(frozen=True)
class PeersBenchmark:
    """Options of the benchmark.

    Attributes:
        output_dir: Folder of the results.
        parts: Parts to measure.
        backbone: Tower of the training steps; see `clipvid.backbone.load_backbone`.
        pretrained: See `clipvid.backbone.load_backbone`. Random weights cost as much as trained ones.
        predictor: Tower of `predicting`.
        num_frames: Frames of a clip.
        batch_size: Clips of a training step, and a quarter of its pairs of image and text.
        steps: Training steps of one measurement. The first two are not counted.
        videos: Videos that are predicted.
        repeats: Repeats of each measurement, in turns. The median is reported.
        threads: Threads of the CPU. None for the number that torch chooses.
    """

    output_dir: str = "outputs/benchmark/peers"
    parts: list[str] = field(default_factory=lambda: list(PARTS))
    backbone: str = "ViT-B-32"
    pretrained: str | None = RANDOM
    predictor: str = "tiny"
    num_frames: int = 8
    batch_size: int = 4
    steps: int = 6
    videos: int = 200
    repeats: int = 3
    threads: int | None = None

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("num_frames", "batch_size", "videos", "repeats"), (1, FINITE))
        check_ranges("benchmark", self, steps=(4, FINITE), **counts)
        if not self.parts:
            raise InputError(f"parts is empty; expected some of {', '.join(PARTS)}")
        for part in self.parts:
            check_option("benchmark", "parts", part, PARTS)


@dataclass(frozen=True)
class Sample:
    """One measurement of one tool.

    Attributes:
        value: The figure, in the unit of its part.
        megabytes: Peak memory beyond that of the model, or None.
    """

    value: float
    megabytes: float | None = None


@dataclass(frozen=True)
class PeerRow:
    """Measurements of one tool in one case of a part.

    Attributes:
        samples: One for each repeat, or empty if the tool cannot do the case.
        unit: Unit of the values, such as `ms`. A rate ends in `/s`.
        is_count: True for values that say nothing about speed.
        note: Reason of an empty row, or a remark.
    """

    part: str
    case: str
    tool: str
    samples: list[Sample]
    unit: str
    note: str = ""
    is_count: bool = False

    @property
    def value(self) -> float | None:
        """Return the median, or None for an empty row."""
        return statistics.median(sample.value for sample in self.samples) if self.samples else None

    @property
    def megabytes(self) -> float | None:
        """Return the median of the peak memory, or None."""
        sizes = [sample.megabytes for sample in self.samples if sample.megabytes is not None]
        return statistics.median(sizes) if sizes else None


def main(args: list[str]) -> None:
    """Run the subject: a table on the terminal and in table.md, all figures in metrics.json."""
    config = parse_config(PeersBenchmark, args, "clipvid benchmark peers")
    run_cost_benchmark(config, measure_peers, render_tables)


def measure_peers(config: PeersBenchmark) -> list[PeerRow]:
    """Measure all parts, one after another."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    rows: list[PeerRow] = []
    for part in track(config.parts, "parts", console=Console(stderr=True), transient=True):
        module = importlib.import_module(f"clipvid.benchmarks.peer_{part}")
        rows += getattr(module, f"measure_{part}")(config)
    return rows


def render_tables(rows: list[PeerRow], config: PeersBenchmark) -> str:
    """Return one table for each part, and the versions below."""
    blocks = []
    for part, own in groupby(rows, key=lambda row: row.part):
        rows_of_part = list(own)
        titles = [part, "tool", rows_of_part[0].unit, "speed of clipvid", "MB"]
        cells = [_cells(row, rows_of_part) for row in rows_of_part]
        used = [place for place in range(len(titles)) if place < 3 or any(line[place] != "-" for line in cells)]
        table = Table([titles[place] for place in used], [[line[place] for place in used] for line in cells], 2)
        blocks.append(table.markdown())
    settings = f"{config.num_frames} frames, batch {config.batch_size}, median of {config.repeats}"
    blocks.append(f"{settings}; {', '.join(describe_machine().values())}; {', '.join(_versions())}.\n")
    return "\n".join(blocks)


def _cells(row: PeerRow, others: list[PeerRow]) -> list[str]:
    """Return case, tool, figure, how many times as fast clipvid is, and peak memory."""
    ours = next((other.value for other in others if other.case == row.case and other.tool == OURS), None)
    value, ratio = row.value, "-"
    if value and ours and row.tool != OURS and not row.is_count:
        ratio = f"{(ours / value if row.unit.endswith('/s') else value / ours):.2f} x"
    return [
        row.case,
        f"{row.tool} ({row.note})" if row.note else row.tool,
        "-" if value is None else f"{value:.3g}",
        ratio,
        "-" if row.megabytes is None else f"{row.megabytes:.0f}",
    ]


def _versions() -> list[str]:
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            versions.append(f"no {name}")
    return [*versions, f"{os.cpu_count()} cores"]
