"""`clipvid benchmark pretraining`: value of training without labels, by adapter, objectives and labels per class.

All results are kept, and the same command resumes an interrupted study.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console
from rich.markdown import Markdown

from clipvid import InputError
from clipvid.adapters import AdapterSpec
from clipvid.benchmarks.seed_statistics import accuracy_over_seeds, difference_over_seeds
from clipvid.evaluation.tables import Table
from clipvid.experiments.config import GridConfig
from clipvid.experiments.grid import Grid
from clipvid.experiments.protocols import FewShot, build_protocol
from clipvid.experiments.run import EvaluateConfig, Recipe
from clipvid.experiments.trial import Trial
from clipvid.files import write_json, write_text
from clipvid.registry import Choice, config_to_choice
from clipvid.runs.config_files import config_record, parse_config
from clipvid.training.pretrain import PretrainConfig

FRESH = "fresh"
MOST_LOST = 0.02


@dataclass(frozen=True, kw_only=True)
class PretrainingBenchmark(GridConfig):
    """Options of the study: few-shot accuracy of fresh adapters and of adapters trained without labels.

    Attributes:
        adapters: Adapters by name.
        stages: Objectives of each training without labels, by name. `fresh` is always included.
        pretrain: Training without labels, once per adapter and stage. The benchmark sets `model.adapter`, `objectives`
            and `output_dir`.
        evaluate: Evaluation with a recipe and a protocol `few_shot`. The benchmark sets `name`, `output_dir`, and
            `model.adapter` and `model.init_from` of the recipe.
        epochs: Epochs of fine-tuning by labels per class. By default those of the recipe.
        fewer: Labels per class after a stage, in the hypothesis.
        more: Labels per class of the fresh adapter, in the hypothesis. It holds if `fewer` after a stage reach the
            accuracy of `more`. The zero-shot accuracy of objects must not fall by more than 0.02. For classes without
            objects, zero-shot top-1 is reported and not judged.
    """

    output_dir: str = "outputs/benchmark/pretraining"
    adapters: dict[str, AdapterSpec] = field(default_factory=lambda: {"ila": "ila", "gta": "gta"})
    stages: dict[str, list[Choice]] = field(
        default_factory=lambda: {
            "order": ["order", "distillation"],
            "masked": ["masked", "distillation"],
            "mix": ["order", "masked", "distillation"],
        }
    )
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    evaluate: EvaluateConfig = field(
        default_factory=lambda: EvaluateConfig(
            recipe=Recipe(), protocol={"name": "few_shot", "shots": [2, 5, 20]}, controls=[], zero_shot=False
        )
    )
    epochs: dict[int, int] = field(default_factory=dict)
    fewer: int = 2
    more: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        protocol = shots_of(self)
        if self.evaluate.recipe is None or not isinstance(protocol, FewShot):
            raise InputError("evaluate: expected a recipe and the protocol few_shot")
        if not {self.fewer, self.more} <= set(protocol.shots):
            raise InputError(f"fewer={self.fewer}, more={self.more}: both must be among shots={protocol.shots}")
        if not set(self.epochs) <= set(protocol.shots):
            raise InputError(f"epochs={self.epochs}: expected keys among shots={protocol.shots}")
        if FRESH in self.stages:
            raise InputError(f"stages: {FRESH!r} is reserved for adapters without pretraining; choose another name")
        if self.pretrain.training.load_best_model_at_end:
            raise InputError(
                "pretrain.training.load_best_model_at_end would select the weights on the test videos; disable it"
            )
        precision = self.pretrain.training.mixed_precision, self.evaluate.mixed_precision
        if len(set(precision)) > 1:
            raise InputError(f"mixed_precision of pretrain.training and evaluate: {precision}; expected equal values")
        for objectives in self.stages.values():
            replace(self.pretrain, objectives=objectives)


def shots_of(config: PretrainingBenchmark) -> FewShot:
    """Return the protocol of a study."""
    protocol: Any = build_protocol(config.evaluate.protocol or config.evaluate.data.protocol)
    return protocol


@dataclass(frozen=True)
class StudyRow:
    """Adapter after one stage.

    Attributes:
        shots: Top-1 by labels per class (`seed_statistics.accuracy_over_seeds`).
        gain: Accuracy with `fewer` labels minus that of the fresh adapter with `more` (`difference_over_seeds`).
        kind: Kind of zero-shot accuracy, `object` or `top1`. None without a stage.
        before: Zero-shot accuracy of CLIP.
        after: Zero-shot accuracy after the stage.
    """

    adapter: str
    stage: str
    shots: dict[int, dict[str, Any]]
    gain: dict[str, Any] | None = None
    kind: str | None = None
    before: float | None = None
    after: float | None = None

    @property
    def held(self) -> bool:
        """True if the hypothesis holds."""
        lost = (self.before or 0) - (self.after or 0) if self.kind == "object" else 0
        return self.gain is not None and self.gain["mean"] >= 0 and lost <= MOST_LOST + 1e-9


def main(args: list[str]) -> None:
    """Run the benchmark. Print the table, and write table.md and metrics.json."""
    config = parse_config(PretrainingBenchmark, args, "clipvid benchmark pretraining")
    output, grid = Path(config.output_dir), Grid(study_trials(config), config)

    def write() -> None:
        rows = study_rows(config, grid.results)
        write_text(output / "table.md", render_table(rows, config))
        records = [asdict(row) | {"held": row.held} for row in rows]
        write_json(output / "metrics.json", {"rows": records, "config": config_record(config)})

    with grid.locked():
        grid.run(write)
        if grid.is_main_process:
            Console().print(Markdown((output / "table.md").read_text()))


def study_trials(config: PretrainingBenchmark) -> list[Trial]:
    """Return a training without labels for each adapter and stage, and the few-shot evaluations that start from it."""
    trials = []
    for adapter, spec in config.adapters.items():
        for stage in (FRESH, *config.stages):
            folder, name = Path(config.output_dir) / adapter / stage, f"{adapter}, {stage}"
            start: str | None = None
            after: tuple[str, ...] = ()
            if stage != FRESH:
                start, after = str(folder / "pretrained"), (_pretraining_name(adapter, stage),)
                model = replace(config.pretrain.model, adapter=spec)
                training = replace(config.pretrain, output_dir=start, objectives=config.stages[stage], model=model)
                trials.append(Trial(_pretraining_name(adapter, stage), training))
            for shots in shots_of(config).shots:
                evaluation = _few_shot(config, adapter, name, shots, start, folder / f"k{shots}")
                trials.append(Trial(f"{name}, K={shots}", evaluation, after))
    return trials


def _pretraining_name(adapter: str, stage: str) -> str:
    return f"{adapter}, {stage}, without labels"


def _few_shot(
    config: PretrainingBenchmark, adapter: str, name: str, shots: int, start: str | None, folder: Path
) -> EvaluateConfig:
    """Return the fine-tuning from `start` with `shots` labels per class, once for each seed."""
    recipe, protocol = config.evaluate.recipe, shots_of(config)
    assert recipe is not None
    epochs = config.epochs.get(shots, recipe.training.epochs)
    recipe = replace(
        recipe,
        model=replace(recipe.model, adapter=config.adapters[adapter], init_from=start),
        training=replace(recipe.training, epochs=epochs, eval_epochs=epochs),
    )
    choice = config_to_choice("few_shot", replace(protocol, shots=[shots]))
    return replace(config.evaluate, name=name, output_dir=str(folder), recipe=recipe, protocol=choice)


def study_rows(config: PretrainingBenchmark, results: dict[str, dict[str, Any]]) -> list[StudyRow]:
    """Return the rows whose trials are finished.

    Args:
        config: Config of the study.
        results: Content of `metrics.json` by name of the trial.
    """
    rows, protocol = [], shots_of(config)
    for adapter in config.adapters:
        fresh: np.ndarray | None = None
        for stage in (FRESH, *config.stages):
            folder, before = Path(config.output_dir) / adapter / stage, _pretraining_name(adapter, stage)
            names = [f"{adapter}, {stage}, K={shots}" for shots in protocol.shots]
            names += [before] if stage != FRESH else []
            if not results.keys() >= set(names) or (stage != FRESH and fresh is None):
                continue
            right = {shots: read_right(folder / f"k{shots}", shots, protocol.seeds) for shots in protocol.shots}
            videos = [str(number) for number in range(next(iter(right.values())).shape[1])]
            figures = {shots: accuracy_over_seeds(hits, videos) for shots, hits in right.items()}
            if fresh is None:
                fresh = right[config.more]
                rows.append(StudyRow(adapter, stage, figures))
                continue
            kind = "object" if "object" in results[before] else "top1"
            start, end = results[before]["before"][kind]["value"], results[before][kind]["value"]
            gain = difference_over_seeds(right[config.fewer], fresh, videos)
            rows.append(StudyRow(adapter, stage, figures, gain, kind, start, end))
    return rows


def read_right(folder: Path, shots: int, seeds: list[int]) -> np.ndarray:
    """Return the correct predictions of an evaluation: float [seeds, videos], 0 or 1."""
    columns = ["group", "condition", "label", "scores", "readable"]
    table = pq.read_table(folder / "predictions.parquet", columns=columns).to_pylist()
    groups = [
        [row for row in table if (row["group"], row["condition"]) == (FewShot.group(shots, seed), "forward")]
        for seed in seeds
    ]
    right = [[row["readable"] and np.argmax(row["scores"]) == row["label"] for row in rows] for rows in groups]
    return np.array(right, dtype=float)


def render_table(rows: list[StudyRow], config: PretrainingBenchmark) -> str:
    """Return a row per adapter and stage, and below them the outcome of the hypothesis."""
    shots, fewer, more = shots_of(config).shots, config.fewer, config.more
    objects = any(row.kind == "object" for row in rows)
    zero_shot = f"zero-shot {'object' if objects else 'top-1'}"
    head = ["adapter", "start", *(f"K={k}" for k in shots), f"K={fewer} less fresh K={more}", zero_shot, "held"]
    table = []
    for row in rows:
        cells = [row.adapter, row.stage, *(_interval(row.shots[k]) for k in shots)]
        if row.gain is None:
            cells += ["-", "-", "-"]
        else:
            cells += [_interval(row.gain, "+"), f"{row.before:.2f} → {row.after:.2f}", "yes" if row.held else "no"]
        table.append(cells)
    lines = [Table(head, table, text_columns=2).markdown()]
    lines += [f"Top-1 by labels per class (K), mean over {len(shots_of(config).seeds)} seeds; in brackets 95% "]
    lines[-1] += "intervals over seeds and videos. Each stage was trained once."
    lines += [f"Held: K={fewer} after the stage is at least K={more} of the fresh adapter, in the mean"]
    lines[-1] += f", and zero-shot accuracy of objects has not fallen by more than {MOST_LOST}." if objects else "."
    held = sum(row.held for row in rows)
    tried = sum(row.gain is not None for row in rows)
    lines += [f"The hypothesis held for {held} of {tried}."]
    return "\n".join(lines) + "\n"


def _interval(figure: dict[str, Any], sign: str = "") -> str:
    return f"{figure['mean']:{sign}.2f} ({figure['low']:{sign}.2f} to {figure['high']:{sign}.2f})"
