"""`clipvid benchmark adapters`: cost of every adapter around one backbone, in time, multiply-adds and memory.

Everything is measured in one run and reported relative to the forward pass of the plain backbone (`none`).
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from clipvid import InputError
from clipvid.adapters import ADAPTERS, resolve_adapters
from clipvid.backbone import RANDOM, Backbone, load_backbone
from clipvid.benchmarks.cost import (
    Pass,
    count_macs,
    describe_machine,
    peak_memory,
    run_cost_benchmark,
    time_passes,
    trained_parameters,
)
from clipvid.evaluation.tables import Table
from clipvid.model.factory import assemble_model
from clipvid.model.video_clip import ModelConfig, VideoCLIP
from clipvid.registry import Choice, OptionValue, build_config
from clipvid.runs.config_files import parse_config
from clipvid.training.objectives import Classification

BASELINE = "none"
ENCODE_IMAGE = "encode_image"  # open_clip's method, on the same frames
NUM_CLASSES = 400

Key = tuple[str, bool]  # row, and True for its training pass


@dataclass(frozen=True)
class Bar:
    """Target for the time of a row, relative to the forward pass of `none`.

    Attributes:
        forward: Target of the forward pass, or None.
        training: Target of the training pass, or None.
        above: Row whose relative times are added to the targets.
    """

    forward: float | None = None
    training: float | None = None
    above: str | None = None


BARS: dict[str, dict[str, Any]] = {
    BASELINE: {"above": ENCODE_IMAGE, "forward": 0.0},
    "ila": {"forward": 1.5, "training": 3.6},
    "gta": {"forward": 1.3, "training": 3.3},
    "sifa": {"forward": 1.15, "training": 3.0},
    "attention": {"forward": 1.6, "training": 3.6},
    "ata": {"above": "attention", "forward": 0.15, "training": 0.15},
    "shift": {"forward": 1.05},
    "xclip": {"forward": 1.1},
    "sifa_transformer": {"forward": 1.25},
}


@dataclass(frozen=True)
class AdapterBenchmark:
    """Options of the benchmark. Adapters share one backbone, and only they are trained.

    Attributes:
        output_dir: Folder of table.md and metrics.json.
        backbone: See `clipvid.backbone.load_backbone`.
        pretrained: See `clipvid.backbone.load_backbone`. Random weights cost the same as trained ones, except for the
            matching of `ata`, which is faster for similar frames.
        adapters: Names of `clipvid.ADAPTERS` or its presets, or `{name: ..., options}`, one per row. `none` is always
            measured.
        num_frames: Number of frames per clip.
        batch_size: Number of random clips.
        repeats: Repeats of each measurement. The median is reported.
        threads: CPU threads. By default torch chooses.
        bars: Fields of `Bar` by row. The defaults are for ViT-B-32 with 8 frames.
    """

    output_dir: str = "outputs/benchmark/adapters"
    backbone: str = "ViT-B-32"
    pretrained: str | None = RANDOM
    adapters: list[Choice] = field(default_factory=lambda: [*ADAPTERS, *ADAPTERS.presets])
    num_frames: int = 8
    batch_size: int = 4
    repeats: int = 5
    threads: int | None = None
    bars: dict[str, dict[str, OptionValue]] = field(default_factory=lambda: dict(BARS))

    def __post_init__(self) -> None:
        for option in ("num_frames", "batch_size", "repeats", "threads"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise InputError(f"{option}={value} must be at least 1")
        for choice in self.adapters:
            resolve_adapters(choice)
        names = [row_name(choice) for choice in self.adapters]
        if len(set(names)) < len(names):
            raise InputError(f"adapters: each name may be listed once, got {names}")
        for name, options in self.bars.items():
            build_config(Bar, options, f"the bar of {name!r}")


@dataclass(frozen=True)
class Cost:
    """Cost of one kind of pass.

    Attributes:
        seconds: Seconds of each repeat.
        macs: Multiply-adds of one clip.
        time_ratio: Median time relative to the forward pass of `none`.
        mac_ratio: Multiply-adds relative to the forward pass of `none`.
        time_per_mac: Time ratio over multiply-add ratio.
        bar: Target of the time ratio, or None.
        missed: True if the target is exceeded.
    """

    seconds: list[float]
    macs: int
    time_ratio: float
    mac_ratio: float
    time_per_mac: float
    bar: float | None
    missed: bool


@dataclass(frozen=True)
class AdapterCost:
    """Cost of one adapter.

    Attributes:
        forward: Forward pass in evaluation mode, without gradients.
        training: Forward and backward pass in training mode, or None if nothing is trained.
        peak_memory: Peak memory of the training pass in bytes, without weights and frames, see
            `clipvid.benchmarks.cost.peak_memory`. None if nothing is trained.
    """

    name: str
    trained_parameters: int
    forward: Cost
    training: Cost | None
    peak_memory: int | None


def main(args: list[str]) -> None:
    """Run the benchmark. Print the table, and write table.md and metrics.json."""
    config = parse_config(AdapterBenchmark, args, "clipvid benchmark adapters")
    run_cost_benchmark(config, measure_adapters, render_table)


def measure_adapters(config: AdapterBenchmark) -> list[AdapterCost]:
    """Return rows for `none`, open_clip's `encode_image` and the adapters in their order.

    All models share the frozen parts of one backbone. Each has fresh adapters.

    Raises:
        InputError: An adapter does not fit the backbone; see also `load_backbone`.
        RunError: See `load_backbone`.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = Accelerator().device
    torch.manual_seed(0)
    backbone = load_backbone(config.backbone, config.pretrained)
    models = {row_name(choice): _build(backbone, choice, config) for choice in [BASELINE, *config.adapters]}
    passes = _passes(models, backbone.open_clip_model())
    for one in passes.values():
        one.model.to(device)
    frames = torch.randn(config.batch_size, config.num_frames, 3, *backbone.vision.image_shape, device=device)
    macs = {key: count_macs(one, frames[:1]) for key, one in passes.items()}
    memory = {name: peak_memory(one, frames) for (name, training), one in passes.items() if training}
    seconds = time_passes(passes, frames, config.repeats)
    sizes = {name: trained_parameters(one.model) for (name, training), one in passes.items() if training}
    bars = {name: Bar(**options) for name, options in config.bars.items()}
    return compare(seconds, macs, memory, sizes, bars)


def row_name(choice: Choice) -> str:
    """Return the name of a row: `ila`, or with options `ila variant=ssv2`."""
    options = {"name": choice} if isinstance(choice, str) else choice
    return " ".join([options["name"], *(f"{key}={value}" for key, value in options.items() if key != "name")])


def _build(backbone: Backbone, choice: Choice, config: AdapterBenchmark) -> VideoCLIP:
    names: dict[str, Any] = {"backbone": config.backbone, "pretrained": config.pretrained, "adapter": choice}
    model = ModelConfig(num_frames=config.num_frames, head="linear", tune=["adapters"], **names)
    return assemble_model(backbone, model, NUM_CLASSES)


def _passes(models: dict[str, VideoCLIP], open_clip_model: Any) -> dict[Key, Pass]:
    def encode_image(frames: Tensor) -> Tensor:
        return open_clip_model.encode_image(frames.flatten(0, 1))

    passes = {(BASELINE, False): Pass(models[BASELINE], partial(models[BASELINE].encode_video, normalized=True))}
    passes[ENCODE_IMAGE, False] = Pass(open_clip_model, encode_image)
    for name, model in models.items():
        passes[name, False] = Pass(model, partial(model.encode_video, normalized=True))
        if trained_parameters(model):
            passes[name, True] = Pass(model, partial(training_loss, model), training=True)
    return passes


def training_loss(model: VideoCLIP, frames: Tensor) -> Tensor:
    """Return the cross-entropy of a model with `NUM_CLASSES` classes on frames [B, T, 3, S, S]."""
    batch = {"frames": frames, "label": torch.zeros(len(frames), dtype=torch.long, device=frames.device)}
    loss, _ = Classification(NUM_CLASSES, seed=0)(model, batch, epoch=0)
    return loss


def compare(
    seconds: dict[Key, list[float]],
    macs: dict[Key, int],
    memory: dict[str, int | None],
    sizes: dict[str, int],
    bars: dict[str, Bar],
) -> list[AdapterCost]:
    """Build rows from measurements, relative to the pass (`none`, False)."""
    base = (BASELINE, False)
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    ratios = {key: median / medians[base] for key, median in medians.items()}

    def cost(key: Key) -> Cost:
        ratio, mac_ratio, bar = ratios[key], macs[key] / macs[base], _limit(bars.get(key[0]), key[1], ratios)
        missed = bar is not None and ratio > bar
        return Cost(seconds[key], macs[key], ratio, mac_ratio, ratio / mac_ratio, bar, missed)

    def row(name: str) -> AdapterCost:
        training = cost((name, True)) if (name, True) in seconds else None
        return AdapterCost(name, sizes.get(name, 0), cost((name, False)), training, memory.get(name))

    return [row(name) for name, training in seconds if not training]


def _limit(bar: Bar | None, training: bool, ratios: dict[Key, float]) -> float | None:
    share = None if bar is None else bar.training if training else bar.forward
    if bar is None or share is None or bar.above is None:
        return share
    below = ratios.get((bar.above, training))
    return None if below is None else below + share


def render_table(rows: list[AdapterCost], config: AdapterBenchmark) -> str:
    """Return the rows, and the settings below them. `1.62 > 1.6 ✗` is a missed target."""
    titles = ["", "forward", "forward + backward", "MACs", "time/MACs", "MiB", "trained"]
    table = []
    for row in rows:
        costs = [cost for cost in (row.forward, row.training) if cost]
        cells = [
            row.name,
            _time(row.forward),
            _time(row.training) if row.training else "-",
            ", ".join(f"{cost.mac_ratio:.2f}" for cost in costs),
            ", ".join(f"{cost.time_per_mac:.2f}" for cost in costs),
            "-" if row.peak_memory is None else f"{row.peak_memory / 2**20:.0f}",
            f"{row.trained_parameters / 1e6:.2f} M" if row.trained_parameters else "-",
        ]
        table.append(cells)
    base = rows[0].forward
    seconds = f"{statistics.median(base.seconds):.3g} s ({min(base.seconds):.3g} to {max(base.seconds):.3g})"
    what = f"{config.backbone}, {config.num_frames} frames, batch {config.batch_size}, median of {config.repeats}"
    lines = [Table(titles, table).markdown()]
    lines += [f"{what}; {', '.join(describe_machine().values())}."]
    lines += [f"1 is the forward pass of `{BASELINE}`: {seconds}, {base.macs / 1e9:.3g} G MACs (multiply-adds) a clip."]
    lines += ["MiB: peak memory of a training step, without weights and frames."]
    return "\n".join(lines) + "\n"


def _time(cost: Cost) -> str:
    if cost.bar is None:
        return f"{cost.time_ratio:.2f}"
    return f"{cost.time_ratio:.2f} > {cost.bar:.3g} ✗" if cost.missed else f"{cost.time_ratio:.2f} ≤ {cost.bar:.3g}"
