"""Models x protocols: `clipvid evaluate --suite configs/eval/suite.yaml`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from clipvid import InputError, RunError
from clipvid.evaluation.tables import markdown_table
from clipvid.experiments.config import EvaluateConfig, SuiteConfig
from clipvid.experiments.run import evaluate_protocol
from clipvid.files import write_text
from clipvid.runs.config_files import parse_config


def run_suite(args: list[str]) -> None:
    """Measure all, write the table after each, and raise RuntimeError at the end where some could not be measured; on
    several processes the first that cannot ends the suite, and the same command goes on."""
    renamed = ["--config" + arg.removeprefix("--suite") if arg.split("=")[0] == "--suite" else arg for arg in args]
    suite = parse_config(SuiteConfig, renamed, "clipvid evaluate --suite SUITE.yaml")
    if not suite.models or not suite.protocols:
        raise InputError("the suite names no models or no protocols")
    output, configs = Path(suite.output_dir), _configs(suite)
    precision = {config.mixed_precision for config in configs.values()}
    if len(precision) > 1:
        raise InputError(
            f"mixed_precision differs between the evaluations ({sorted(precision)}); choose one for a suite"
        )
    accelerator = Accelerator(mixed_precision=precision.pop())
    cells: dict[tuple[str, str], dict[str, str]] = {}
    failed: dict[tuple[str, str], str] = {}
    for (protocol, model), config in configs.items():
        try:
            cells[protocol, model] = table_cells(evaluate_protocol(config, accelerator))
        except (ValueError, OSError, RuntimeError) as error:
            if accelerator.num_processes > 1:
                raise  # the others may be waiting anywhere
            failed[protocol, model] = str(error)
            accelerator.print(f"{model} under {protocol} could not be measured: {error}")
        accelerator.free_memory()
        if accelerator.is_main_process:
            write_text(output / "table.md", render_table(suite, cells))
    accelerator.print(f"{render_table(suite, cells)}\n-> {output}/table.md")
    if failed:
        told = "\n".join(f"  {model} under {protocol}: {error}" for (protocol, model), error in failed.items())
        raise RunError(f"{len(failed)} of {len(configs)} evaluations could not be made, the others stand:\n{told}")


def _configs(suite: SuiteConfig) -> dict[tuple[str, str], EvaluateConfig]:
    """All of them, parsed before any is measured."""
    configs = {}
    for protocol, asked in suite.protocols.items():
        for model, made in suite.models.items():
            config = parse_config(EvaluateConfig, ["--config", asked, "--config", made], "clipvid evaluate")
            folder = Path(suite.output_dir) / folder_name(protocol) / folder_name(model)
            configs[protocol, model] = replace(config, name=model, output_dir=str(folder))
    folders = {config.output_dir for config in configs.values()}
    if len(folders) < len(configs):
        raise InputError("two names of the suite give the same folder; let them differ in letters or digits")
    return configs


def folder_name(name: str) -> str:
    """A folder for what people call a row or a column."""
    return "_".join("".join(letter if letter.isalnum() else " " for letter in name.lower()).split())


def table_cells(metrics: dict[str, Any]) -> dict[str, str]:
    """Column -> text of one line of the table: what the protocol comes to, or the figures of its one group."""
    runs = metrics.get("few_shot") or metrics.get("base_to_novel")
    if runs:
        return {name.replace("_", " "): _spread(run) for name, run in runs.items()}
    (figures,) = metrics["groups"].values()
    cells = {"top-1": _share(figures["top1"]), "mean class": f"{figures['mean_class']:.2f}"}
    cells |= {name: f"{figures[key]:.2f}" for key, name in (("nll", "NLL"), ("ece", "ECE")) if figures[key] is not None}
    if "pairs" in figures:
        cells["motion pairs"] = _share(figures["pairs"])
    return cells | {
        f"top-1, {name}": f"{own['top1']['value']:.2f}" for name, own in figures.get("controls", {}).items()
    }


def render_table(suite: SuiteConfig, cells: dict[tuple[str, str], dict[str, str]]) -> str:
    """Return a Markdown table for each protocol with a line for each model; `-` for a missing figure."""
    blocks = []
    for protocol in suite.protocols:
        lines = {model: cells.get((protocol, model), {}) for model in suite.models}
        columns = list(dict.fromkeys(column for line in lines.values() for column in line)) or ["top-1"]
        rows = [[model, *(line.get(column, "-") for column in columns)] for model, line in lines.items()]
        blocks.append(markdown_table([protocol, *columns], rows))
    return "\n".join(blocks)


def _share(figure: dict[str, Any]) -> str:
    return f"{figure['value']:.2f} ({figure['low']:.2f}-{figure['high']:.2f})"


def _spread(run: dict[str, Any]) -> str:
    return f"{run['mean']:.2f}" + ("" if run["std"] is None else f" ± {run['std']:.2f}")
