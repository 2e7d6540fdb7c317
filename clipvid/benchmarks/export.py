"""`clipvid benchmark export`: seconds and memory of exported models, relative to the model in PyTorch."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from clipvid import InputError
from clipvid.backbone.loading import RANDOM
from clipvid.benchmarks.cost import describe_machine, run_cost_benchmark
from clipvid.benchmarks.export_passes import RUNTIMES, Source, memory_of_process, time_runtimes
from clipvid.benchmarks.fresh_process import in_fresh_process
from clipvid.evaluation.tables import Table
from clipvid.inference.export.formats import export_model
from clipvid.registry import FINITE, Choice, check_ranges
from clipvid.runs.config_files import parse_config

NAMES = {"eager": "PyTorch", "torch": "torch.export", "onnx": "onnxruntime"}


@dataclass(frozen=True)
class ExportBenchmark:
    """Options of the benchmark. Each measurement has a new process; the runtimes take turns in it.

    Attributes:
        output_dir: Folder of the results.
        backbones: See `clipvid.backbone.load_backbone`; `tiny` has its own weights, others those of `pretrained`.
        pretrained: See `clipvid.backbone.load_backbone`. Random weights cost the same as trained ones.
        adapter: See `ModelConfig`.
        num_frames: Frames of a clip.
        batch_size: Number of random clips.
        threads: Numbers of CPU threads to measure with.
        repeats: Passes of each runtime. The median is reported.
        memory: Also measure the memory of a process that has loaded the model and run one batch.
    """

    output_dir: str = "outputs/benchmark/export"
    backbones: list[str] = field(default_factory=lambda: ["tiny", "ViT-B-32"])
    pretrained: str | None = RANDOM
    adapter: Choice = "none"
    num_frames: int = 8
    batch_size: int = 4
    threads: list[int] = field(default_factory=lambda: [1, 2])
    repeats: int = 5
    memory: bool = True

    def __post_init__(self) -> None:
        check_ranges("benchmark", self, **dict.fromkeys(("num_frames", "batch_size", "repeats"), (1, FINITE)))
        if not self.threads or min(self.threads) < 1:
            raise InputError(f"benchmark.threads={self.threads}: expected numbers of at least 1")


@dataclass(frozen=True)
class ExportCost:
    """Cost of one model with one number of threads.

    Attributes:
        backbone: Its name.
        threads: Threads of the CPU.
        seconds: Of each pass, by runtime.
        memory: Memory of a process in MB by runtime, or None.
        difference: Largest difference of a probability between the ONNX file and the model.
    """

    backbone: str
    threads: int
    seconds: dict[str, list[float]]
    memory: dict[str, float] | None
    difference: float

    def speed(self, runtime: str) -> float:
        """Return the speed relative to PyTorch, the median over the rounds."""
        rounds = zip(self.seconds["eager"], self.seconds[runtime], strict=True)
        return statistics.median(eager / other for eager, other in rounds)


def main(args: list[str]) -> None:
    """Run the subject: a table on the terminal and in table.md, all figures in metrics.json."""
    config = parse_config(ExportBenchmark, args, "clipvid benchmark export")
    run_cost_benchmark(config, measure_exports, render_table)


def measure_exports(config: ExportBenchmark) -> list[ExportCost]:
    """Export each model once, and measure it with each number of threads."""
    rows: list[ExportCost] = []
    for backbone in track(config.backbones, "models", console=Console(stderr=True), transient=True):
        stem = Path(config.output_dir) / f"model_{len(rows)}"
        pretrained = None if backbone == "tiny" else config.pretrained
        files = {"program": f"{stem}.pt2", "onnx": f"{stem}.onnx"}
        source = Source(backbone, pretrained, config.adapter, config.num_frames, **files)
        model = source.build()
        for file in map(Path, files.values()):
            file.unlink(missing_ok=True)
        export_model(model, files["program"], "torch")
        difference = export_model(model, files["onnx"]).difference
        side = model.image_size
        generator = np.random.default_rng(0)
        shape = (config.batch_size, config.num_frames, side, side, 3)
        frames = generator.integers(0, 256, shape, dtype=np.uint8)
        for threads in config.threads:
            seconds = in_fresh_process(time_runtimes, source, threads, frames, config.repeats)
            memory = None
            if config.memory:
                memory = {
                    name: in_fresh_process(memory_of_process, source, name, threads, frames) / 1e6 for name in RUNTIMES
                }
            rows.append(ExportCost(backbone, threads, seconds, memory, difference))
    return rows


def render_table(rows: list[ExportCost], config: ExportBenchmark) -> str:
    """Return one line per model, number of threads and runtime, and the settings below."""
    table = []
    for row in rows:
        for runtime in RUNTIMES:
            memory = "" if row.memory is None else f"{row.memory[runtime]:.0f}"
            seconds = f"{statistics.median(row.seconds[runtime]):.3g}"
            name = f"{row.backbone}, {row.threads} thread{'s' * (row.threads > 1)}, {NAMES[runtime]}"
            table.append([name, seconds, f"{row.speed(runtime):.2f}", memory])
    columns = ["", "seconds", "times as fast as PyTorch", "MB of the process"]
    largest = max(row.difference for row in rows)
    return "\n".join(
        [
            Table(columns, table).markdown(),
            f"{config.adapter}, {config.num_frames} frames, batch {config.batch_size}, median of {config.repeats}; "
            f"largest difference of a probability {largest:.0e}; {describe_machine()['torch']}.",
            "",
        ]
    )
