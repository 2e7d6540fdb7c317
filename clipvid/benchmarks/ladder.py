"""`clipvid benchmark ladder`: every adapter under one recipe and several seeds, predictions and what became of them.

A cell is a row and a seed: an evaluation with a training of its own, in `cells/<row>_seed<seed>`, that is never made
twice. `clipvid evaluate --config <that folder>/run.yaml --output_dir elsewhere` makes one again.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from datetime import date
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markdown import Markdown

from clipvid import InputError, RunError
from clipvid.benchmarks.adapters import BASELINE
from clipvid.benchmarks.cost import describe_machine
from clipvid.benchmarks.ladder_costs import measured_once
from clipvid.benchmarks.ladder_report import draw_ladder, render_ladder
from clipvid.benchmarks.seed_statistics import Prediction, Results, measures_of, same_answers
from clipvid.data.manifest import Manifest
from clipvid.data.splits import load_split
from clipvid.experiments.parallel import Ended, evaluate_side_by_side
from clipvid.experiments.protocols import Holdout, LeaveOneGroupOut, build_protocol
from clipvid.experiments.run import EvaluateConfig, Recipe
from clipvid.experiments.suite import folder_name
from clipvid.files import write_json, write_text
from clipvid.runs.config_files import config_record, differences, parse_config
from clipvid.runs.preemption import Preemption

METRICS = "metrics.json"


@dataclass(frozen=True)
class LadderConfig:
    """Rows x seeds.

    cell: what all cells have in common, options of `clipvid evaluate` with a `recipe`. `name` and `output_dir` are the
        ladder's, and so are the seeds of the recipe and of a protocol that draws by one.
    rows: name -> what is different, options of the recipe by dotted name (`model.adapter`, `optim.lr`), each of which
        is a column of the table; `none` must be one, which costs are told relative to.
    predictions: see `seed_statistics.Prediction`; each is kept with the number of cells that were finished when it was
        first seen.
    jobs: cells at a time. threads: of the CPU, for each.
    repeat: row whose first seed is run a second time, in a folder of its own, to see that all scores are the same.
    cost_repeats: of each measurement of time, of which the median counts.
    """

    cell: EvaluateConfig
    rows: dict[str, dict[str, Any]]
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    predictions: list[Prediction] = field(default_factory=list)
    output_dir: str = "outputs/ladder"
    jobs: int = 1
    threads: int = 1
    repeat: str | None = None
    cost_repeats: int = 3

    def __post_init__(self) -> None:
        if self.cell.recipe is None:
            raise InputError("cell.recipe is missing: a ladder trains its rows")
        protocol = build_protocol(self.cell.protocol or self.cell.data.protocol)
        if not isinstance(protocol, Holdout | LeaveOneGroupOut):
            raise InputError(
                f"cell.protocol={self.cell.protocol}: a ladder's seeds are those of its trainings; take holdout or "
                "leave_one_group_out, or `clipvid evaluate` for the others"
            )
        if BASELINE not in self.rows:
            raise InputError(f"rows: {BASELINE!r}, which the others are measured by, is missing from {list(self.rows)}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"seeds={self.seeds}: expected one or more different ones")
        for option in ("jobs", "threads", "cost_repeats"):
            if getattr(self, option) < 1:
                raise InputError(f"{option}={getattr(self, option)} must be at least 1")
        told = [("repeat", self.repeat)]
        told += [(f"prediction {str(each)!r}", row) for each in self.predictions for row in (each.row, each.over)]
        for owner, row in told:
            if row is not None and row not in self.rows:
                raise InputError(f"{owner}: {row!r} is no row; rows: {', '.join(self.rows)}")
        for each in self.predictions:
            if each.under not in ("forward", *self.cell.controls):
                known = ", ".join(self.cell.controls)
                raise InputError(f"prediction {str(each)!r}: cell.controls has no {each.under!r}, only {known}")


@dataclass(frozen=True)
class Cell:
    """A row under a seed. again: the second run."""

    row: str
    seed: int
    config: EvaluateConfig
    again: bool = False

    @property
    def name(self) -> str:
        return f"{self.row}, seed {self.seed}" + (", again" if self.again else "")

    @property
    def folder(self) -> Path:
        return Path(self.config.output_dir)

    def metrics(self) -> dict[str, Any] | None:
        """What is in its metrics.json, which is written last of all; None where it is not finished."""
        file = self.folder / METRICS
        found = json.loads(file.read_text()) if file.is_file() else {}
        return found if "config" in found and not differences(found["config"], self.config) else None

    def seconds(self) -> float:
        """What it took, over all its sessions; one that was killed has told nothing."""
        sessions = json.loads((self.folder / "run.json").read_text())["sessions"]
        return sum(session.get("wall_seconds", 0.0) for session in sessions)


def main(args: list[str]) -> None:
    """The subject: table.md, ladder.png and metrics.json after every cell, the table on the terminal at the end.

    Raises:
        RuntimeError: cells that failed; the others stand.
    """
    config = parse_config(LadderConfig, args, "clipvid benchmark ladder")
    cells = ladder_cells(config)
    manifest = asked_videos(config.cell)
    known = measures_of([manifest.classes[label] for label in sorted({sample.label for sample in manifest.samples})])
    for each in config.predictions:
        if each.measure not in known:
            raise InputError(f"prediction {str(each)!r}: nothing like {each.measure!r} here, only {', '.join(known)}")
    output = Path(config.output_dir)
    missing = {cell.name: cell for cell in cells if cell.metrics() is None}
    torch.set_num_threads(config.threads)
    costs = measured_once(
        output / "costs.json", _recipes(cells), manifest.class_names, config.cell.templates, config.cost_repeats
    )
    written = note_predictions(output / "predictions.json", config.predictions, len(cells) - len(missing))
    ladder = _Ladder(config, cells, manifest, written, costs, shlex.join(["clipvid", "benchmark", "ladder", *args]))
    ladder.write()
    failed = {}
    print(f"{len(cells) - len(missing)} of {len(cells)} cells are finished", flush=True)
    with Preemption():
        for ended, left in _timed(missing, config):
            if ended.error is not None:
                failed[ended.name] = ended.error
            ladder.write(failed)
            print(f"{ladder.describe(missing[ended.name], ended)}; {left}", flush=True)
    Console().print(Markdown(render_ladder(ladder.results)))
    print(f"-> {output}/table.md, ladder.png, metrics.json")
    if failed:
        told = "\n".join(f"  {name}: {error}" for name, error in failed.items())
        raise RunError(f"{len(failed)} of {len(cells)} cells failed, the others stand:\n{told}")


def ladder_cells(config: LadderConfig) -> list[Cell]:
    """All cells, seed by seed, every config checked; the second run comes last.

    Raises:
        ValueError: rows whose folders would be the same. Options that do not exist end the program.
    """
    if len({folder_name(row) for row in config.rows}) < len(config.rows):
        raise InputError(f"rows: two of {list(config.rows)} give the same folder; let them differ in letters or digits")
    chosen = [(row, seed, False) for seed in config.seeds for row in config.rows]
    chosen += [(config.repeat, config.seeds[0], True)] if config.repeat is not None else []
    return [Cell(row, seed, _cell_config(config, row, seed, again), again) for row, seed, again in chosen]


def _cell_config(config: LadderConfig, row: str, seed: int, again: bool) -> EvaluateConfig:
    record = config_record(config.cell)
    folder = f"{folder_name(row)}_seed{seed}" + ("_again" if again else "")
    record |= {"name": row, "output_dir": str(Path(config.output_dir) / "cells" / folder)}
    record["recipe"]["seed"] = seed
    protocol = record["protocol"] or record["data"]["protocol"]
    if "seed" in {option.name for option in fields(build_protocol(protocol))}:
        record["protocol"] = ({"name": protocol} if isinstance(protocol, str) else protocol) | {"seed": seed}
    for option, value in config.rows[row].items():
        *path, last = option.split(".")
        place = record["recipe"]
        for part in path:
            place = place[part] if isinstance(place.get(part), dict) else place.setdefault(part, {})
        place[last] = value
    return parse_config(EvaluateConfig, ["--config", json.dumps(record)], f"row {row!r}")


def _recipes(cells: list[Cell]) -> dict[str, Recipe]:
    recipes: dict[str, Recipe] = {}
    for cell in cells:
        assert cell.config.recipe is not None
        recipes.setdefault(cell.row, cell.config.recipe)
    return recipes


def asked_videos(cell: EvaluateConfig) -> Manifest:
    """All videos that a cell asks about; builds the world, before several processes would."""
    test = load_split(cell.data, "val")
    train = load_split(cell.data, "train")
    protocol = build_protocol(cell.protocol or cell.data.protocol)
    return train.joined(test) if protocol.train_is_asked else test


def note_predictions(file: Path, predictions: list[Prediction], finished: int) -> dict[str, int]:
    """Keep how many cells were finished when each prediction was first seen; returns that by prediction."""
    known: dict[str, int] = json.loads(file.read_text()) if file.is_file() else {}
    known |= {key: finished for each in predictions if (key := json.dumps(asdict(each))) not in known}
    write_json(file, known)
    return {str(each): known[json.dumps(asdict(each))] for each in predictions}


def _timed(missing: dict[str, Cell], config: LadderConfig) -> Iterator[tuple[Ended, str]]:
    """The cells as they end, and how long the others will take if they are like these."""
    start = time.monotonic()
    configs = {name: cell.config for name, cell in missing.items()}
    for done, ended in enumerate(evaluate_side_by_side(configs, config.jobs, config.threads), start=1):
        left = (time.monotonic() - start) / done * (len(missing) - done)
        yield ended, f"{len(missing) - done} cells left, about {left / 60:.0f} min"


class _Ladder:
    """The cells of a ladder and what is known of them."""

    def __init__(
        self,
        config: LadderConfig,
        cells: list[Cell],
        manifest: Manifest,
        written: dict[str, int],
        costs: dict[str, dict[str, Any]],
        command: str,
    ) -> None:
        self.config, self.cells, self.manifest, self.written, self.costs = config, cells, manifest, written, costs
        self.command = command
        self.results: dict[str, Any] = {}

    def write(self, failed: dict[str, str] | None = None) -> None:
        """All figures of the finished cells."""
        config, output = self.config, Path(self.config.output_dir)
        clusters = {sample.path: sample.group or sample.path for sample in self.manifest.samples}
        results = Results(self.manifest.classes, clusters)
        finished = [cell for cell in self.cells if cell.metrics() is not None]
        for cell in finished:
            if not cell.again:
                results.add(cell.row, cell.seed, cell.folder / "predictions.parquet")
        self.results = {
            "rows": {
                row: {"settings": settings, "cost": self.costs[row], **results.figures(row)}
                for row, settings in config.rows.items()
            },
            "predictions": [
                {"text": str(each), "written_after": self.written[str(each)], **asdict(each), **results.outcome(each)}
                for each in config.predictions
            ],
            "repeat": self._repeat(finished),
            "failed": failed or {},
            "finished": len(finished),
            "cells": len(self.cells),
            "seconds": sum(cell.seconds() for cell in finished),
            "videos": len(self.manifest),
            "clusters": len(set(clusters.values())),
            "command": self.command,
            "date": date.today().isoformat(),
            "machine": describe_machine(),
            "config": config_record(config),
        }
        write_text(output / "table.md", render_ladder(self.results))
        draw_ladder(self.results, output / "ladder.png")
        write_json(output / METRICS, self.results)

    def _repeat(self, finished: list[Cell]) -> dict[str, Any] | None:
        twice = [cell for cell in finished if (cell.row, cell.seed) == (self.config.repeat, self.config.seeds[0])]
        if len(twice) < 2:
            return None
        first, second = (cell.folder / "predictions.parquet" for cell in twice)
        return {"cell": twice[0].name, "same": same_answers(first, second)}

    def describe(self, cell: Cell, ended: Ended) -> str:
        """One line about a cell that ended."""
        metrics = cell.metrics()
        if metrics is None:
            return f"{cell.name}: FAILED after {ended.seconds:.0f} s: {ended.error}"
        told = [f"{name} {metrics[name]['value']:.3f}" for name in ("pairs", "top1") if name in metrics]
        return f"{cell.name}: {', '.join(told)} in {ended.seconds:.0f} s"
