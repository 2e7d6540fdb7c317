"""Store the tables of a finished benchmark for the pages: `python docs/generate/store.py FOLDER NAME [--command C]`.

`FOLDER/table.md` becomes `docs/results/NAME.json`, and its other tables `NAME_motions.json`, `NAME_reading.json`, ...
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"
SUFFIXES = {
    "motion distinguished from its reverse": "_motions",
    "hypothesis": "_predictions",
    "prediction": "_predictions",
    "method": "",
    "measure": "_others",
    "training step": "_training",
    "reading": "_reading",
    "frames at asked times": "_exactness",
    "predicting": "_predicting",
    "start-up": "_startup",
    "": "",
}


def split_row(line: str) -> list[str]:
    """Return the cells of a line of a Markdown table."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def tables_of(text: str, command: str | None) -> dict[str, dict[str, Any]]:
    """Return the tables of a `table.md` by the suffix of their files.

    Raises:
        ValueError: A table starts with an unknown heading.
    """
    blocks = [block.splitlines() for block in re.split(r"\n\s*\n", text.strip())]
    notes = [line.removeprefix("- ") for block in blocks for line in block if not line.startswith("|")]
    named = re.findall(r"`(clipvid [^`]+)`", notes[-1])
    made_by, conditions = command or named[-1], notes[:-1] if named else notes
    tables = {}
    for block in blocks:
        if not block[0].startswith("|"):
            continue
        columns, marks, *rows = (split_row(line) for line in block)
        if columns[0] not in SUFFIXES:
            raise ValueError(f"unknown table with the heading {columns[0]!r}; expected one of {sorted(SUFFIXES)}")
        suffix = SUFFIXES[columns[0]]
        texts = [column for column, mark in zip(columns[1:], marks[1:], strict=True) if not mark.endswith(":")]
        tables[suffix] = {
            "command": made_by,
            "conditions": " ".join(conditions) if not tables else None,
            "text_columns": texts,
            "columns": columns,
            "rows": rows,
        }
    return tables


def main() -> None:
    """Parse the command line and write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="output folder of `clipvid benchmark`")
    parser.add_argument("name", help="name of the stored table")
    parser.add_argument("--command", help="command that a reader types, by default the one in table.md")
    options = parser.parse_args()
    text = (options.folder / "table.md").read_text(encoding="utf-8")
    for suffix, table in tables_of(text, options.command).items():
        path = RESULTS / f"{options.name}{suffix}.json"
        path.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
