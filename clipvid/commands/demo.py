"""Demo on the synthetic world: zero-shot, fine-tuning, evaluation, report."""

from __future__ import annotations

from pathlib import Path

from clipvid.experiments.config import DemoConfig
from clipvid.runs.config_files import parse_config


def main(args: list[str] | None = None) -> None:
    """Run the verb."""
    demo = parse_config(DemoConfig, args, "clipvid demo")

    from accelerate import Accelerator
    from rich.console import Console
    from rich.markdown import Markdown

    from clipvid.evaluation.report_sections import results_table
    from clipvid.experiments.demo import run_demo

    rows = run_demo(demo, Accelerator())
    Console().print(Markdown(results_table(rows).markdown()))
    print(f"report: {Path(demo.output_dir) / 'report.html'}")
