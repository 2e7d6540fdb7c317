"""`clipvid benchmark explain`: faithfulness of explanations, on clips with known places of the object.

Predictions are part of the config, so that they are written before the figures.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import track

from clipvid import InputError
from clipvid.benchmarks.cost import describe_machine, run_cost_benchmark
from clipvid.benchmarks.explain_clips import FilmedClips, WorldClips
from clipvid.benchmarks.explain_measures import (
    adapter_measures,
    frame_agreement,
    map_correlation,
    pointing,
    randomized,
    removal_curves,
)
from clipvid.benchmarks.seed_statistics import mean_variance
from clipvid.data.config import DataConfig
from clipvid.data.synthetic.world import WorldConfig
from clipvid.evaluation.tables import Table
from clipvid.hub.loading import from_pretrained
from clipvid.inference.explain.explanation import explain_clip
from clipvid.inference.explain.methods import METHODS
from clipvid.model.video_clip import VideoCLIP
from clipvid.registry import Choice
from clipvid.runs.config_files import parse_config

RANDOM, CHANCE = "random", "chance"
OF_MAPS = ("pointing", "deletion", "insertion", "randomized")
MEASURES = ("pointing", "deletion", "insertion", "frames", "randomized", "points", "tubes")
# (measure, method) -> values by clip
Values = dict[tuple[str, str], list[float]]


@dataclass(frozen=True)
class Expectation:
    """Expected figure, recorded before it is measured.

    Attributes:
        measure: One of `MEASURES`.
        method: Method, or `ila` and the like for `points` and `tubes`, or `frames`.
        why: Reason to expect it.
        over: Second method or baseline. With it, the expectation is about the difference.
        at_least: Lower bound, or None.
        at_most: Upper bound, or None.
        apart: The interval of the difference must not contain 0.
    """

    measure: str
    method: str
    why: str
    over: str | None = None
    at_least: float | None = None
    at_most: float | None = None
    apart: bool = False

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise InputError(f"predictions: measure={self.measure!r} is not one of {', '.join(MEASURES)}")


@dataclass(frozen=True)
class ExplainBenchmark:
    """Options of the benchmark.

    Attributes:
        output_dir: Folder of table.md and metrics.json.
        models: Model folders, trained with one seed each.
        world: The synthetic world of the models.
        clips_per_class: Test clips of each class.
        methods: Methods, as in `clipvid explain`. Random maps are always measured.
        steps: Steps of the deletion and insertion curves.
        slow_clips: Clips for exact Shapley values and randomized weights, spread over the classes.
        predictions: Expected figures.
        data: Videos of a fixed camera in `data.val`, instead of the world. What moves in them is the object.
    """

    output_dir: str = "outputs/benchmark/explain"
    models: list[str] = field(default_factory=lambda: ["outputs/demo/ila"])
    world: WorldConfig = field(default_factory=WorldConfig)
    clips_per_class: int = 2
    methods: list[Choice] = field(default_factory=lambda: ["attention", "rollout", "grad_cam"])
    steps: int = 12
    slow_clips: int = 20
    predictions: list[Expectation] = field(default_factory=list)
    data: DataConfig | None = None

    def __post_init__(self) -> None:
        for option in ("clips_per_class", "steps", "slow_clips"):
            if getattr(self, option) < 1:
                raise InputError(f"{option}={getattr(self, option)} must be at least 1")
        if not self.models:
            raise InputError("models: expected at least one model folder")
        METHODS.resolve_many(self.methods)


@dataclass(frozen=True)
class ExplainFigure:
    """Mean over models and clips.

    Attributes:
        measure: Name of the measure.
        method: Name of the method.
        over: Baseline that is subtracted, or None.
        mean: The mean.
        low: Lower end of its 95% interval.
        high: Upper end of its 95% interval.
        clips: Number of clips of each model.
        models: Number of models.
        why: Reason of the prediction, or None without one.
        expected: The prediction as text, or None without one.
        held: True if the figure is as predicted, or None without a prediction.
    """

    measure: str
    method: str
    over: str | None
    mean: float
    low: float
    high: float
    clips: int
    models: int
    why: str | None = None
    expected: str | None = None
    held: bool | None = None


def main(args: list[str]) -> None:
    """Run the benchmark. Print the table, and write table.md and metrics.json."""
    config = parse_config(ExplainBenchmark, args, "clipvid benchmark explain")
    run_cost_benchmark(config, measure_explanations, render_table)


def measure_explanations(config: ExplainBenchmark) -> list[ExplainFigure]:
    """Return the figures of all methods, and of the predictions.

    Raises:
        InputError: A model has other classes than the clips, or a prediction names something that is not measured.
    """
    device, clips = Accelerator().device, source_of(config)
    by_model = [measure_model(from_pretrained(folder).to(device), config, clips) for folder in config.models]
    figures = [summarize(by_model, measure, method) for measure, method in by_model[0]]
    return figures + [judge(by_model, each) for each in config.predictions]


def source_of(config: ExplainBenchmark) -> WorldClips | FilmedClips:
    """Return the source of the clips."""
    return WorldClips(config.world) if config.data is None else FilmedClips(config.data)


def measure_model(model: VideoCLIP, config: ExplainBenchmark, source: WorldClips | FilmedClips) -> Values:
    """Return the values of all measures for one model, by clip."""
    names = source.names
    if model.labels != names:
        owner = "world" if config.data is None else "data"
        raise InputError(f"the model has {len(model.labels)} classes that are not the {len(names)} of the {owner}")
    methods = METHODS.resolve_many(config.methods)
    values: Values = defaultdict(list)
    clips = [(label, index) for index in range(config.clips_per_class) for label in range(len(names))]
    slow = {round(place) for place in np.linspace(0, len(clips) - 1, min(config.slow_clips, len(clips)))}
    noise, other = torch.Generator().manual_seed(0), randomized(model, 0)
    grid = model.encoder.tower.grid
    progress = track(list(enumerate(clips)), "explaining", console=Console(stderr=True), transient=True)
    for place, (label, index) in progress:
        clip = source.read(model, label, index)
        explanation = explain_clip(model, clip.frames, time=False)
        target, on_object = explanation.target, clip.on_object(grid)
        pixels = model.normalize(clip.frames[None].to(model.pixel_mean.device))
        maps = {name: method.relevance(model, pixels, target).cpu() for name, method in methods.items()}
        maps[RANDOM] = torch.rand(on_object.shape, generator=noise)
        values["pointing", CHANCE].append(float(on_object.float().mean()))
        for name, relevance in maps.items():
            values["pointing", name].append(pointing(relevance, on_object))
            deletion, insertion = removal_curves(model, pixels, target, relevance, config.steps)
            values["deletion", name].append(deletion)
            values["insertion", name].append(insertion)
        for name, value in adapter_measures(explanation, clip).items():
            values["points" if "points" in name else "tubes", name].append(value)
        if place in slow:
            values["frames", "frames"].append(frame_agreement(model, pixels, target))
            for name, method in methods.items():
                values["randomized", name].append(map_correlation(maps[name], method.relevance(other, pixels, target)))
    return values


def summarize(by_model: list[Values], measure: str, method: str, over: str | None = None) -> ExplainFigure:
    """Return the mean of a measure with its interval over models and clips."""
    try:
        values = np.array([own[measure, method] for own in by_model])
        if over is not None:
            values = values - np.array([own[measure, over] for own in by_model])
    except KeyError as error:
        measured = ", ".join(f"{measure} of {method}" for measure, method in by_model[0])
        raise InputError(f"predictions: {error.args[0]} is not measured; measured are {measured}") from None
    variance, quantile = mean_variance(values, [str(place) for place in range(values.shape[1])])
    half, mean = quantile * math.sqrt(variance), float(values.mean())
    return ExplainFigure(measure, method, over, mean, mean - half, mean + half, values.shape[1], len(values))


def judge(by_model: list[Values], expectation: Expectation) -> ExplainFigure:
    """Return the figure of a prediction, and whether it is as predicted."""
    figure = summarize(by_model, expectation.measure, expectation.method, expectation.over)
    low = -math.inf if expectation.at_least is None else expectation.at_least
    high = math.inf if expectation.at_most is None else expectation.at_most
    held = low <= figure.mean <= high and not (expectation.apart and figure.low <= 0 <= figure.high)
    bounds = [f"≥ {low:g}" if low > -math.inf else "", f"≤ {high:g}" if high < math.inf else ""]
    bounds.append("interval without 0" if expectation.apart else "")
    record: dict[str, Any] = vars(figure) | {"why": expectation.why, "held": held}
    return ExplainFigure(**record | {"expected": ", ".join(filter(None, bounds))})


def render_table(figures: list[ExplainFigure], config: ExplainBenchmark) -> str:
    """Return the figures by method, those of frames and adapters, the predictions, and the settings below them."""
    measured = {(figure.measure, figure.method): figure for figure in figures if figure.expected is None}
    maps = [measure for measure in OF_MAPS if any(measure == each for each, _ in measured)]
    methods = list(dict.fromkeys(method for measure, method in measured if measure in maps))
    rows = [[name, *(_interval(measured.get((measure, name))) for measure in maps)] for name in methods]
    lines = [Table(["method", *maps], rows).markdown()]
    rows = [[figure.method, _interval(figure)] for figure in measured.values() if figure.measure not in maps]
    lines.append(Table(["measure", "mean (95% interval)"], rows).markdown())
    judged = [
        [
            f"{figure.measure}, {figure.method}" + (f" − {figure.over}" if figure.over else ""),
            str(figure.expected),
            _interval(figure),
            "✓" if figure.held else "✗",
        ]
        for figure in figures
        if figure.expected is not None
    ]
    if judged:
        lines.append(Table(["prediction", "expected", "measured", "held"], judged, text_columns=2).markdown())
    lines.append(
        f"{len(config.models)} models, {figures[0].clips} clips each, {config.slow_clips} for frames and randomized "
        f"weights; {config.steps} steps of deletion and insertion; {', '.join(describe_machine().values())}."
    )
    return "\n".join(lines) + "\n"


def _interval(figure: ExplainFigure | None) -> str:
    return "" if figure is None else f"{figure.mean:.3f} ({figure.low:.3f} to {figure.high:.3f})"
