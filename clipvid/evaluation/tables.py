"""Tables with one content and two renderings: Markdown for terminals and `table.md`, HTML for reports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from clipvid.files import markdown_text


@dataclass(frozen=True)
class Bar:
    """A share from 0 to 1 drawn as a bar.

    Attributes:
        value: its length.
        low: lower end of the interval.
        high: upper end of the interval.
        color: its color, as CSS has it.
        chance: where chance is marked; None for no mark.
    """

    value: float
    low: float
    high: float
    color: str
    chance: float | None = None


@dataclass(frozen=True)
class Figure:
    """A number with its interval.

    Attributes:
        value: the number.
        interval: its lower and upper end; None for none.
        digits: decimals to show.
        bar: drawn below the number in HTML.
    """

    value: float
    interval: tuple[float, float] | None = None
    digits: int = 3
    bar: Bar | None = None

    @property
    def number(self) -> str:
        """Return the number as text."""
        return f"{self.value:.{self.digits}f}"

    @property
    def range(self) -> str:
        """Return the interval as text; empty for none."""
        return "" if self.interval is None else "–".join(f"{end:.{self.digits}f}" for end in self.interval)

    def __str__(self) -> str:
        """Return number and interval, `0.93 (0.90-0.95)`."""
        return f"{self.number} ({self.range.replace('–', '-')})" if self.interval else self.number


@dataclass(frozen=True)
class Strong:
    """A text that stands out."""

    text: str


Cell: TypeAlias = str | Figure | Strong | None


@dataclass(frozen=True)
class Header:
    """Title of a column with an explanation, which only HTML shows."""

    title: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table of text and figures. Both renderings escape the text.

    Attributes:
        headers: titles of the columns.
        rows: a cell per column; None for a missing figure.
        text_columns: leading columns that are aligned left in Markdown; the others hold numbers.
        last_text_columns: columns at the end that are aligned left in Markdown.

    Raises:
        ValueError: a row has another number of cells than there are headers.
    """

    kind: ClassVar[str] = "table"
    headers: Sequence[str | Header]
    rows: Sequence[Sequence[Cell]]
    text_columns: int = 1
    last_text_columns: int = 0

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.headers):
                raise ValueError(f"a table row has {len(row)} cells, expected {len(self.headers)}: {list(row)}")

    @property
    def columns(self) -> list[Header]:
        """Return the headers, those without an explanation too, as `Header`."""
        return [each if isinstance(each, Header) else Header(each) for each in self.headers]

    def markdown(self) -> str:
        """Return the table in Markdown, ending in a newline."""
        numbers = len(self.headers) - self.text_columns - self.last_text_columns
        ruler = "|---" * self.text_columns + "|---:" * numbers + "|---" * self.last_text_columns + "|"
        titles = _line([header.title for header in self.columns])
        return "\n".join([titles, ruler, *map(_line, self.rows)]) + "\n"


def _line(cells: Iterable[Cell]) -> str:
    return "".join(f"| {cell} " if cell else "| " for cell in map(_markdown, cells)) + "|"


def _markdown(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, Strong):
        return f"**{markdown_text(cell.text)}**"
    return markdown_text(str(cell))
