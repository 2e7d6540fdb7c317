"""Tables of the pages, rendered from figures stored in `docs/results/*.json`.

A file has `columns`, `rows` (lists of displayed cells, the first one a name), `command`, which made the figures, and
`conditions`, under which they are valid.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"


def load(name: str) -> dict[str, Any]:
    """Return a stored table."""
    table: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return table


def markdown(table: dict[str, Any]) -> str:
    """Return the rows as a Markdown table; names and text to the left, figures to the right."""
    texts = table.get("text_columns", [])
    columns = table["columns"]
    marks = ["---" if index == 0 or column in texts else "---:" for index, column in enumerate(columns)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, marks, *table["rows"]))


def render(name: str) -> str:
    """Return a table with its conditions and the command that made it."""
    table = load(name)
    below = [table["conditions"]] if table.get("conditions") else []
    if table.get("command"):
        below.append(f"Measured by `{table['command']}`.")
    return "\n\n".join([markdown(table), " ".join(below)])
