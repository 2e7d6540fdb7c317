"""`clipvid benchmark tuning`: cost of a training step by trained parts of the model, in time and memory.

Everything is measured in one run and reported relative to tuning the whole image tower.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator

from clipvid import InputError
from clipvid.backbone import RANDOM, load_backbone
from clipvid.benchmarks.adapters import NUM_CLASSES, training_loss
from clipvid.benchmarks.cost import (
    Pass,
    describe_machine,
    peak_memory,
    run_cost_benchmark,
    time_passes,
    trained_parameters,
)
from clipvid.evaluation.tables import Table
from clipvid.model.factory import assemble_model
from clipvid.model.video_clip import ModelConfig, VideoCLIP
from clipvid.registry import OptionValue, build_config
from clipvid.runs.config_files import parse_config

BASELINE = "full"
ROWS: dict[str, dict[str, Any]] = {
    BASELINE: {"tune": ["full", "head"]},
    "adapters in all blocks": {"adapter": "st_adapter", "tune": ["adapters", "head"], "time": 0.9},
    "adapters in the upper half": {
        "adapter": {"name": "st_adapter", "layers": "upper"},
        "tune": ["adapters", "head"],
        "time": 0.6,
        "memory": 0.5,
    },
    "lora": {"tune": ["lora", "head"]},
    "layernorm": {"tune": ["layernorm", "head"]},
    "partial, 4 blocks": {"tune": [{"name": "partial", "blocks": 4}, "head"]},
    "head": {"tune": ["head"]},
}


@dataclass(frozen=True)
class TuningSpec:
    """Trained parts of a model, with targets.

    Attributes:
        tune: See `clipvid.model.ModelConfig`.
        adapter: See `clipvid.model.ModelConfig`.
        time: Target for the time of a training step relative to `full`, or None.
        memory: Target for the memory of a training step relative to `full`, or None.
    """

    tune: list[Any]
    adapter: Any = "none"
    time: float | None = None
    memory: float | None = None


@dataclass(frozen=True)
class TuningBenchmark:
    """Options of the benchmark. A step is forward and backward pass with the loss of a linear head.

    Attributes:
        backbone: See `clipvid.backbone.load_backbone`.
        pretrained: See `clipvid.backbone.load_backbone`. Random weights cost the same as trained ones.
        rows: Fields of `TuningSpec` by name, including `full`. The default targets are for ViT-B-16, 8 frames, batch 4.
        batch_size: Number of random clips.
        repeats: Repeats of each measurement. The median is reported.
        threads: CPU threads. By default torch chooses.
    """

    output_dir: str = "outputs/benchmark/tuning"
    backbone: str = "ViT-B-16"
    pretrained: str | None = RANDOM
    rows: dict[str, dict[str, OptionValue]] = field(default_factory=lambda: dict(ROWS))
    num_frames: int = 8
    batch_size: int = 4
    repeats: int = 3
    threads: int | None = None

    def __post_init__(self) -> None:
        if BASELINE not in self.rows:
            raise InputError(f"rows: {BASELINE!r}, the reference of the others, is missing from {list(self.rows)}")
        for name, options in self.rows.items():
            _model_config(self, build_config(TuningSpec, options, f"row {name!r}"))


@dataclass(frozen=True)
class Step:
    """Cost of a training step.

    Attributes:
        seconds: Seconds of each repeat.
        peak_memory: Peak memory in bytes, without weights and frames, see `cost.peak_memory`.
        time_ratio: Median time relative to `full`.
        memory_ratio: Peak memory relative to `full`.
    """

    name: str
    trained_parameters: int
    seconds: list[float]
    peak_memory: int | None
    time_ratio: float
    memory_ratio: float | None


def main(args: list[str]) -> None:
    """Run the benchmark. Print the table, and write table.md and metrics.json."""
    config = parse_config(TuningBenchmark, args, "clipvid benchmark tuning")
    run_cost_benchmark(config, measure_tuning, render_table)


def measure_tuning(config: TuningBenchmark) -> list[Step]:
    """Measure a step of every row, each with a separate tower."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = Accelerator().device
    torch.manual_seed(0)
    models = {name: _build(config, TuningSpec(**options)).to(device) for name, options in config.rows.items()}
    passes = {name: Pass(model, partial(training_loss, model), training=True) for name, model in models.items()}
    size = models[BASELINE].image_size
    frames = torch.randn(config.batch_size, config.num_frames, 3, size, size, device=device)
    memory = {name: peak_memory(one, frames) for name, one in passes.items()}
    seconds = time_passes(passes, frames, config.repeats)
    base = statistics.median(seconds[BASELINE])
    whole = memory[BASELINE]
    return [
        Step(
            name,
            trained_parameters(models[name]),
            seconds[name],
            peak,
            statistics.median(seconds[name]) / base,
            peak / whole if peak is not None and whole else None,
        )
        for name, peak in memory.items()
    ]


def _build(config: TuningBenchmark, row: TuningSpec) -> VideoCLIP:
    backbone = load_backbone(config.backbone, config.pretrained)
    return assemble_model(backbone, _model_config(config, row), NUM_CLASSES)


def _model_config(config: TuningBenchmark, row: TuningSpec) -> ModelConfig:
    names: dict[str, Any] = {"backbone": config.backbone, "pretrained": config.pretrained, "head": "linear"}
    return ModelConfig(adapter=row.adapter, tune=row.tune, num_frames=config.num_frames, **names)


def render_table(steps: list[Step], config: TuningBenchmark) -> str:
    """Return the rows, and the settings below them. `0.7 > 0.6 ✗` is a missed target."""
    table = []
    for step in steps:
        row = TuningSpec(**config.rows[step.name])
        peak = "-" if step.peak_memory is None else f"{step.peak_memory / 2**20:.0f}"
        cells = [_beside(step.time_ratio, row.time), _beside(step.memory_ratio, row.memory), peak]
        table.append([step.name, *cells, f"{step.trained_parameters / 1e6:.2f} M"])
    what = f"{config.backbone}, {config.num_frames} frames, batch {config.batch_size}, median of {config.repeats}"
    base = next(step for step in steps if step.name == BASELINE)
    lines = [Table(["", "time", "memory", "MiB", "trained"], table).markdown()]
    lines += [f"{what}; {', '.join(describe_machine().values())}."]
    lines += [f"1 is a step that tunes the whole image tower: {statistics.median(base.seconds):.3g} s."]
    lines += ["MiB: peak memory of a step, without weights, gradients of earlier steps and frames."]
    return "\n".join(lines) + "\n"


def _beside(ratio: float | None, bar: float | None) -> str:
    if ratio is None or bar is None:
        return "-" if ratio is None else f"{ratio:.2f}"
    return f"{ratio:.2f} > {bar:g} ✗" if ratio > bar else f"{ratio:.2f} ≤ {bar:g}"
