"""Inspection of video data before training: `clipvid inspect train.csv --val val.csv --root videos`."""

from __future__ import annotations

from pathlib import Path

from clipvid.inspection.config import InspectConfig
from clipvid.runs.config_files import parse_config


def main(args: list[str] | None = None) -> None:
    """Run the verb."""
    config = parse_config(InspectConfig, args, "clipvid inspect", as_positional=True)

    from rich.console import Console
    from rich.markdown import Markdown

    from clipvid.files import markdown_text, printable
    from clipvid.inspection.report import summary_table
    from clipvid.inspection.run import RECORD, REPORT, run_inspection

    inspection = run_inspection(config)
    text = summary_table(inspection.findings, inspection.clips).markdown()
    notes = [*inspection.findings.notes, inspection.fixed]
    Console().print(Markdown("\n\n".join([text, *(markdown_text(note) for note in notes if note)])))
    print(printable(f"-> {Path(config.output_dir) / REPORT} and {RECORD}"))
