"""Evaluation of models x protocols: `clipvid evaluate --suite configs/eval/suite.yaml`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from clipvid import InputError
from clipvid.evaluation.tables import Table
from clipvid.experiments.config import EvaluateConfig, SuiteConfig
from clipvid.experiments.grid import Grid
from clipvid.experiments.trial import Trial
from clipvid.files import write_text
from clipvid.runs.config_files import parse_config


def run_suite(args: list[str]) -> None:
    """Measure all models under all protocols, and write `table.md` after each.

    Raises:
        RunError: Evaluations failed. The others are kept.
    """
    renamed = ["--config" + arg.removeprefix("--suite") if arg.split("=")[0] == "--suite" else arg for arg in args]
    suite = parse_config(SuiteConfig, renamed, "clipvid evaluate --suite SUITE.yaml")
    if not suite.models or not suite.protocols:
        raise InputError("the suite has no models or no protocols; set `models` and `protocols`")
    grid, table = Grid(suite_trials(suite), suite), Path(suite.output_dir) / "table.md"
    try:
        with grid.locked():
            grid.run(lambda: write_text(table, render_table(suite, grid.results)))
    finally:
        if grid.is_main_process:
            print(f"{render_table(suite, grid.results)}\n-> {table}")


def suite_trials(suite: SuiteConfig) -> list[Trial]:
    """Return all evaluations with checked configs."""
    trials = []
    for protocol, measured in suite.protocols.items():
        for model, made in suite.models.items():
            config = parse_config(EvaluateConfig, ["--config", measured, "--config", made], "clipvid evaluate")
            folder = Path(suite.output_dir) / folder_name(protocol) / folder_name(model)
            config = replace(config, name=model, output_dir=str(folder))
            trials.append(Trial(_trial_name(model, protocol), config))
    return trials


def _trial_name(model: str, protocol: str) -> str:
    return f"{model} under {protocol}"


def folder_name(name: str) -> str:
    """Return the folder name for the name of a row or a column."""
    return "_".join("".join(letter if letter.isalnum() else " " for letter in name.lower()).split())


def table_cells(metrics: dict[str, Any]) -> dict[str, str]:
    """Return a row of the table, text by column: the summary of the protocol, or the figures of its only group.

    Args:
        metrics: Content of the evaluation's `metrics.json`.
    """
    runs = metrics.get("few_shot") or metrics.get("base_to_novel")
    if runs:
        return {name.replace("_", " "): _spread(run) for name, run in runs.items()}
    if "map" in metrics:
        cells = {"mAP": _share(metrics["map"]), "micro mAP": f"{metrics['map_micro']:.2f}"}
        return cells | {
            f"mAP, {name}": f"{own['map']['value']:.2f}" for name, own in metrics.get("controls", {}).items()
        }
    cells = {"top-1": _share(metrics["top1"]), "mean class": f"{metrics['mean_class']:.2f}"}
    cells |= {name: f"{metrics[key]:.2f}" for key, name in (("nll", "NLL"), ("ece", "ECE")) if metrics[key] is not None}
    if "pairs" in metrics:
        cells["motion pairs"] = _share(metrics["pairs"])
    return cells | {
        f"top-1, {name}": f"{own['top1']['value']:.2f}" for name, own in metrics.get("controls", {}).items()
    }


def render_table(suite: SuiteConfig, results: dict[str, dict[str, Any]]) -> str:
    """Return a Markdown table per protocol with a row per model, and `-` for missing figures."""
    blocks = []
    for protocol in suite.protocols:
        names = {model: _trial_name(model, protocol) for model in suite.models}
        lines = {model: table_cells(results[name]) if name in results else {} for model, name in names.items()}
        columns = list(dict.fromkeys(column for line in lines.values() for column in line)) or ["top-1"]
        rows = [[model, *(line.get(column, "-") for column in columns)] for model, line in lines.items()]
        blocks.append(Table([protocol, *columns], rows).markdown())
    return "\n".join(blocks)


def _share(figure: dict[str, Any]) -> str:
    return f"{figure['value']:.2f} ({figure['low']:.2f}-{figure['high']:.2f})"


def _spread(run: dict[str, Any]) -> str:
    return f"{run['mean']:.2f}" + ("" if run["std"] is None else f" ± {run['std']:.2f}")
