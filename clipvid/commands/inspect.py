"""Inspection of video data before training: `clipvid inspect train.csv --val val.csv --root videos`."""

from __future__ import annotations

from pathlib import Path

from clipvid.inspection.config import InspectConfig
from clipvid.runs.config_files import parse_config

PAIRS = 5  # of classes, in the terminal; the report has all


def main(args: list[str] | None = None) -> None:
    """Run the verb."""
    config = parse_config(InspectConfig, args, "clipvid inspect", as_positional=True)

    from rich.console import Console
    from rich.markdown import Markdown

    from clipvid.files import markdown_text, printable
    from clipvid.inspection.motion_report import advise, motion_table, pair_sentences, verdict
    from clipvid.inspection.report import summary_table
    from clipvid.inspection.run import RECORD, REPORT, run_inspection

    inspection = run_inspection(config)
    parts = [summary_table(inspection.findings, inspection.clips).markdown()]
    notes = [*inspection.findings.notes, inspection.fixed]
    if inspection.motion is not None:
        parts.append(motion_table(inspection.motion).markdown())
        pairs = pair_sentences(inspection.motion, inspection.clips.class_names)
        notes += [*pairs[:PAIRS], verdict(inspection.motion), *advise(inspection.motion, inspection.readings.facts)]
    Console().print(Markdown("\n\n".join([*parts, *(markdown_text(note) for note in notes if note)])))
    print(printable(f"-> {Path(config.output_dir) / REPORT} and {RECORD}"))
