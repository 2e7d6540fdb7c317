"""`clipvid benchmark ladder`: every adapter under one recipe and several seeds, with hypotheses and their outcomes.

A trial is a row and a seed: an evaluation with its training, in `trials/<row>_seed<seed>`, that is never repeated.
`clipvid evaluate --config <that folder>/run.yaml --output_dir elsewhere` repeats one.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from functools import reduce
from pathlib import Path
from typing import Any, ClassVar

import torch
from rich.console import Console
from rich.markdown import Markdown

from clipvid import InputError
from clipvid.benchmarks.adapters import BASELINE
from clipvid.benchmarks.cost import describe_machine
from clipvid.benchmarks.ladder_costs import measured_once
from clipvid.benchmarks.ladder_report import draw_ladder, ladder_page, render_ladder
from clipvid.benchmarks.seed_statistics import Hypothesis, Results, measures_of, same_answers
from clipvid.data.manifest import Manifest
from clipvid.data.splits import load_split, load_splits
from clipvid.evaluation.report import write_page
from clipvid.experiments.config import GridConfig
from clipvid.experiments.grid import Grid
from clipvid.experiments.protocols import Holdout, LeaveOneGroupOut, build_protocol
from clipvid.experiments.run import EvaluateConfig, Recipe
from clipvid.experiments.suite import folder_name
from clipvid.experiments.trial import Trial
from clipvid.files import write_json, write_text
from clipvid.registry import Choice, OptionValue
from clipvid.runs.config_files import config_record, parse_config

METRICS = "metrics.json"


@dataclass(frozen=True, kw_only=True)
class LadderConfig(GridConfig):
    """Options of a ladder, rows x seeds.

    Attributes:
        trial: Options of `clipvid evaluate` for all trials, with a `recipe`. The ladder sets `name`, `output_dir`, and
            the seeds of the recipe and of a protocol with a seed. `cell` is its former name.
        rows: Name -> options of the recipe that differ in this row, by dotted name (`model.adapter`, `optim.lr`). Each
            option is a column of the table. The row `none` is required, since costs are relative to it.
        predictions: See `seed_statistics.Hypothesis`. Each is stored with the number of trials that had finished when
            it was first read.
        repeat: Row whose first seed is run a second time, in another folder, to check that all scores are the same.
        cost_repeats: Repeats of each measurement of time. The median is reported.
    """

    RENAMED: ClassVar[dict[str, str]] = {"cell": "trial"}

    trial: EvaluateConfig
    rows: dict[str, dict[str, OptionValue]]
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    predictions: list[Hypothesis] = field(default_factory=list)
    output_dir: str = "outputs/ladder"
    jobs: int | None = 1
    threads: int | None = 1
    repeat: str | None = None
    cost_repeats: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trial.recipe is None:
            raise InputError("trial.recipe is missing, which a ladder needs to train its rows")
        protocol = build_protocol(self.trial.protocol or self.trial.data.protocol)
        if not isinstance(protocol, Holdout | LeaveOneGroupOut):
            raise InputError(
                f"trial.protocol={self.trial.protocol} has separate seeds; choose holdout or "
                "leave_one_group_out, or use `clipvid evaluate` for other protocols"
            )
        if BASELINE not in self.rows:
            raise InputError(f"rows: {BASELINE!r}, the reference of the others, is missing from {list(self.rows)}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"seeds={self.seeds}: expected one or more different seeds")
        if self.cost_repeats < 1:
            raise InputError(f"cost_repeats={self.cost_repeats} must be at least 1")
        named = [("repeat", self.repeat)]
        named += [(f"prediction {str(each)!r}", row) for each in self.predictions for row in (each.row, each.over)]
        for owner, row in named:
            if row is not None and row not in self.rows:
                raise InputError(f"{owner}: {row!r} is not a row; rows: {', '.join(self.rows)}")
        for each in self.predictions:
            if each.under not in ("forward", *self.trial.controls):
                controls = ", ".join(self.trial.controls)
                raise InputError(
                    f"prediction {str(each)!r}: trial.controls does not have {each.under!r}, only {controls}"
                )


@dataclass(frozen=True)
class LadderTrial(Trial):
    """Row under a seed.

    Attributes:
        row: Name of the row.
        again: True for the second run of the same row and seed.
    """

    row: str = BASELINE
    again: bool = False


def main(args: list[str]) -> None:
    """Run the subject, write its files after every trial, and print the table at the end.

    The files are report.html, table.md, ladder.png and metrics.json.

    Raises:
        RunError: Trials failed. The others are kept.
    """
    config = parse_config(LadderConfig, args, "clipvid benchmark ladder")
    trials = ladder_trials(config)
    manifest = tested_videos(config.trial)
    measures = measures_of([manifest.classes[label] for label in sorted({sample.label for sample in manifest.samples})])
    for each in config.predictions:
        if each.measure not in measures:
            raise InputError(
                f"prediction {str(each)!r}: {each.measure!r} is not measured here, only {', '.join(measures)}"
            )
    output = Path(config.output_dir)
    grid = Grid(trials, config)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with grid.locked():
        costs = measured_once(
            output / "costs.json", _recipes(trials), manifest.class_names, config.trial.templates, config.cost_repeats
        )
        written = note_hypotheses(output / "predictions.json", config.predictions, len(grid.results))
        command = shlex.join(["clipvid", "benchmark", "ladder", *args])
        ladder = _Ladder(config, trials, grid, manifest, written, costs, command)
        try:
            grid.run(ladder.write)
        finally:
            if ladder.results:
                Console().print(Markdown(render_ladder(ladder.results)))
                print(f"-> {output}/report.html, table.md, ladder.png, metrics.json")


def ladder_trials(config: LadderConfig) -> list[LadderTrial]:
    """Return all trials, seed by seed, with checked configs. The second run comes last.

    Invalid options end the program.

    Raises:
        InputError: Two rows have the same folder.
    """
    if len({folder_name(row) for row in config.rows}) < len(config.rows):
        raise InputError(f"rows: two of {list(config.rows)} give the same folder; use different letters or digits")
    chosen = [(row, seed, False) for seed in config.seeds for row in config.rows]
    chosen += [(config.repeat, config.seeds[0], True)] if config.repeat is not None else []
    rows = {row: _row_config(config, row) for row in config.rows}
    output = Path(config.output_dir)
    trials = output / ("cells" if (output / "cells").is_dir() else "trials")  # earlier versions wrote cells/
    return [
        LadderTrial(
            f"{row}, seed {seed}" + (", again" if again else ""),
            _with_seed(rows[row], seed, trials / (f"{folder_name(row)}_seed{seed}" + ("_again" if again else ""))),
            row=row,
            again=again,
        )
        for row, seed, again in chosen
    ]


def _with_seed(config: EvaluateConfig, seed: int, folder: Path) -> EvaluateConfig:
    assert config.recipe is not None
    protocol: Any = config.protocol or config.data.protocol
    recipe = replace(config.recipe, seed=seed)
    if not _draws_videos(protocol):
        return replace(config, output_dir=str(folder), recipe=recipe)
    protocol = ({"name": protocol} if isinstance(protocol, str) else protocol) | {"seed": seed}
    return replace(config, output_dir=str(folder), recipe=recipe, protocol=protocol)


def _row_config(config: LadderConfig, row: str) -> EvaluateConfig:
    if "seed" in config.rows[row]:
        raise InputError(f"row {row!r}: every row is trained under all of seeds={config.seeds}; remove its seed")
    record = config_record(config.trial) | {"name": row}
    for option, value in config.rows[row].items():
        *path, last = option.split(".")
        place = record["recipe"]
        for part in path:
            place = place[part] if isinstance(place.get(part), dict) else place.setdefault(part, {})
        place[last] = value
    parsed = parse_config(EvaluateConfig, ["--config", json.dumps(record)], f"row {row!r}")
    for option, value in config.rows[row].items():
        used = reduce(_option, option.split("."), config_record(parsed.recipe))
        if isinstance(used, int | float) and isinstance(value, str):
            raise InputError(f"row {row!r}: {option}={value!r} is text; expected {used} without quotes")
    return parsed


def _draws_videos(protocol: Choice) -> bool:
    """Return True if a protocol draws folds or training videos by a seed."""
    built = build_protocol(protocol)
    return isinstance(built, LeaveOneGroupOut) or (isinstance(built, Holdout) and built.shots is not None)


def _option(record: Any, name: str) -> Any:
    return record.get(name) if isinstance(record, dict) else None


def _recipes(trials: list[LadderTrial]) -> dict[str, Recipe]:
    recipes: dict[str, Recipe] = {}
    for trial in trials:
        assert isinstance(trial.config, EvaluateConfig)
        assert trial.config.recipe is not None
        recipes.setdefault(trial.row, trial.config.recipe)
    return recipes


def tested_videos(trial: EvaluateConfig) -> Manifest:
    """Return all test videos of a trial. Build the synthetic world first."""
    if not build_protocol(trial.protocol or trial.data.protocol).train_is_asked:
        return load_split(trial.data, "val")
    train, test = load_splits(trial.data)
    return train.joined(test)


def note_hypotheses(file: Path, hypotheses: list[Hypothesis], finished: int) -> dict[str, int]:
    """Record the number of finished trials when each hypothesis was first read, and return it by hypothesis."""
    counts: dict[str, int] = json.loads(file.read_text()) if file.is_file() else {}
    counts |= {key: finished for each in hypotheses if (key := json.dumps(asdict(each))) not in counts}
    write_json(file, counts)
    return {str(each): counts[json.dumps(asdict(each))] for each in hypotheses}


class _Ladder:
    """Figures and tables of a ladder, from its finished trials."""

    def __init__(
        self,
        config: LadderConfig,
        trials: list[LadderTrial],
        grid: Grid,
        manifest: Manifest,
        written: dict[str, int],
        costs: dict[str, dict[str, Any]],
        command: str,
    ) -> None:
        self.config, self.trials, self.grid, self.manifest = config, trials, grid, manifest
        self.written, self.costs, self.command = written, costs, command
        self.results: dict[str, Any] = {}

    def write(self) -> None:
        """Write table, plot and figures of the finished trials."""
        config, output = self.config, Path(self.config.output_dir)
        clusters = {sample.path: sample.group or sample.path for sample in self.manifest.samples}
        results = Results(self.manifest.classes, clusters)
        finished = [trial for trial in self.trials if trial.name in self.grid.results]
        for trial in finished:
            if not trial.again:
                assert trial.seed is not None
                results.add(trial.row, trial.seed, trial.folder / "predictions.parquet")
        self.results = {
            "rows": {
                row: {
                    "settings": settings,
                    "cost": self.costs[row],
                    **results.figures(row),
                    "less_none": results.differences(row, "none"),
                }
                for row, settings in config.rows.items()
            },
            "predictions": [
                {"text": str(each), "written_after": self.written[str(each)], **asdict(each), **results.outcome(each)}
                for each in config.predictions
            ],
            "repeat": self._repeat(finished),
            "failed": self.grid.errors,
            "finished": len(finished),
            "cells": len(self.trials),
            "seconds": self.grid.seconds(),
            "videos": len(self.manifest),
            "clusters": len(set(clusters.values())),
            "command": self.command,
            "date": date.today().isoformat(),
            "machine": describe_machine(),
            "config": config_record(config),
        }
        write_text(output / "table.md", render_ladder(self.results))
        draw_ladder(self.results, output / "ladder.png")
        write_page(output / "report.html", ladder_page(self.results))
        write_json(output / METRICS, self.results)

    def _repeat(self, finished: list[LadderTrial]) -> dict[str, Any] | None:
        twice = [trial for trial in finished if (trial.row, trial.seed) == (self.config.repeat, self.config.seeds[0])]
        if len(twice) < 2:
            return None
        first, second = (trial.folder / "predictions.parquet" for trial in twice)
        return {"cell": twice[0].name, "same": same_answers(first, second)}
