"""The one renderer of Markdown tables, for terminals, `table.md` and the README."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(headers: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """Return a Markdown table that ends in a newline.

    Pipes in cells are escaped, and line breaks become spaces, so that every row stays one line.

    Args:
        headers: titles of the columns.
        rows: one cell per column.
        text_columns: leading columns to align left; the others hold numbers and are aligned right.

    Raises:
        ValueError: a row has another number of cells than there are headers.
    """
    ruler = "|---" * text_columns + "|---:" * (len(headers) - text_columns) + "|"
    lines = [_line(headers), ruler]
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(f"a table row has {len(row)} cells, expected {len(headers)}: {list(row)}")
        lines.append(_line(row))
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "".join(f"| {cell} " if cell else "| " for cell in map(_cell, cells)) + "|"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
