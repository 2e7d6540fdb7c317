"""Sections that several reports share: accuracies, curves, confusion matrices, clips, unreadable videos and settings.

Shapes: V videos, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from clipvid.evaluation.charts import DASHES, PALETTE, Line, confusion_chart, finite_points, line_chart
from clipvid.evaluation.clips import RIGHT, WRONG, ClipStrip
from clipvid.evaluation.report import BarCards, Clips, Definitions, LegendEntry, Listing, NamedBar, Pictures, Section
from clipvid.evaluation.tables import Bar, Cell, Figure, Header, Table

COLUMNS = {"object": "object top-1", "pairs": "motion pairs", "top1": "top-1", "map": "mAP"}
QUESTIONS = {"object": "what is it?", "pairs": "or its reverse?", "top1": "the whole label", "map": "mean over classes"}
ZERO_SHOT_NAME = "zero-shot CLIP"
TOP_K = 5  # of `top5`; it cannot be below 1 where there are no more classes
UNREADABLE_RULE = (
    "A video that cannot be read counts as wrong in every share of videos, such as top-1 and mean-class accuracy. NLL, "
    "ECE, calibration and confusion matrices are over the readable videos, because others have no probabilities."
)


@dataclass(frozen=True)
class ReportRow:
    """A line of a report's tables: a name and the figures of `metrics.json`, of which any may be absent."""

    name: str
    figures: dict[str, Any]


@dataclass(frozen=True)
class Curve:
    """One run's history: entries with `step` and `loss`, and entries with `step` and `val_top1` (a share).

    With `training.diagnose` there are also `train_top1`, `update/<adapter>.<block>` and `without/<adapter>.<block>`.
    """

    name: str
    history: list[dict[str, Any]]


@dataclass(frozen=True)
class Confusion:
    """Counts [K, K] of a model, by true and by predicted class, and the K names."""

    name: str
    counts: list[list[int]]
    class_names: Sequence[str]


def row_colors(rows: Sequence[ReportRow], curves: Sequence[Curve] = ()) -> dict[str, str]:
    """Return a color for each name, the same in all sections of a page. Gray is for zero-shot CLIP, in all groups."""
    gray, *palette = PALETTE
    names = list(dict.fromkeys([row.name for row in rows] + [curve.name for curve in curves]))
    others = [name for name in names if not name.startswith(ZERO_SHOT_NAME)]
    colors = {name: palette[index % len(palette)] for index, name in enumerate(others)}
    return {name: colors.get(name, gray) for name in names}


def results_table(rows: Sequence[ReportRow], colors: dict[str, str] | None = None) -> Table:
    """Return accuracies with 95% intervals, to two decimals.

    Args:
        rows: Names and figures.
        colors: Colors of the bars by name of row. None for no bars.
    """
    columns = {key: name for key, name in COLUMNS.items() if any(row.figures.get(key) for row in rows)}
    lines: list[list[Cell]] = []
    for row in rows:
        color = None if colors is None else colors[row.name]
        lines.append([row.name, *(_share(row.figures.get(key), color, key == "pairs") for key in columns)])
    return Table(["", *(Header(name, QUESTIONS[key]) for key, name in columns.items())], lines)


def results_section(rows: Sequence[ReportRow], colors: dict[str, str]) -> Section:
    """Return the accuracies of all rows."""
    table = results_table(rows, colors)
    counts = {row.figures[key]["count"] for row in rows for key in COLUMNS if row.figures.get(key)}
    over = f" of {' to '.join(map(str, sorted({min(counts), max(counts)})))} clips" if counts else ""
    note = f"Each number is the share{over} answered right, from 0 to 1; the range is its 95% Wilson interval. "
    if any("map" in row.figures for row in rows):
        note = f"Mean average precision (mAP){over}, from 0 to 1; the range is its 95% bootstrap interval over videos. "
    note += "The dotted line in motion pairs is chance, 0.50." if any("pairs" in row.figures for row in rows) else ""
    return Section("Results", note, [table] if rows else [])


def _share(figure: dict[str, Any] | None, color: str | None, is_pair: bool) -> Figure | None:
    if not figure:
        return None
    value, interval = figure["value"], (figure["low"], figure["high"])
    bar = None if color is None else Bar(value, *interval, color, chance=0.5 if is_pair else None)
    return Figure(value, interval, 2, bar)


def pairs_section(rows: Sequence[ReportRow], colors: dict[str, str]) -> Section:
    """Return the accuracies of all rows by motion pair."""
    cards: dict[str, list[NamedBar]] = {}
    for row in rows:
        for pair, share in (row.figures.get("by_pair") or {}).items():
            figure = _share(share, colors[row.name], True)
            assert figure is not None
            cards.setdefault(pair, []).append(NamedBar(row.name, figure))
    note = (
        "Is a motion distinguished from its reverse? The dotted line is chance, 0.50. A bar that ends left of it means "
    )
    note += "that the reverse is named more often. Thin strokes are 95% intervals."
    return Section("Accuracy by motion pair", note, [BarCards(cards)] if cards else [])


def clips_section(clips: Sequence[ClipStrip]) -> Section:
    """Return clips with the answers of each model."""
    note = "Each clip plays at the left, with its frames beside it. Below are the answers of each model with their "
    note += f"probabilities: {RIGHT.symbol} right, {WRONG.symbol} wrong."
    return Section("Clips", note, [Clips(clips)] if clips else [])


def curves_section(curves: Sequence[Curve], colors: dict[str, str]) -> Section:
    """Return training loss and validation accuracy over steps."""
    pictures, legend = [], {}
    measures = {"loss": "training loss", "train_top1": "top-1 on training videos", "val_top1": "validation top-1"}
    measures["val_map"] = "validation mAP"
    for key, heading in measures.items():
        lines, ends = [], []
        for index, curve in enumerate(curves):
            steps, values = finite_points(curve.history, key)
            if steps:
                color, dash = colors[curve.name], DASHES[index % len(DASHES)]
                lines.append(Line(curve.name, steps, values, color, dash))
                ends.append(f"{curve.name} from {values[0]:.2f} to {values[-1]:.2f}")
                legend[curve.name] = LegendEntry(curve.name, color, dash)
        if lines:
            alt = f"{heading}: {'; '.join(ends)}"
            pictures.append(line_chart(lines, f"{heading} over steps", alt, key != "loss"))
    note = (
        "A falling loss: the model fits its training clips. A rising top-1 or mAP: it is right on clips it never saw."
    )
    return Section("Learning curves", note, [Pictures(pictures, list(legend.values()))] if pictures else [])


def confusions_section(confusions: Iterable[Confusion]) -> Section:
    """Return a confusion matrix for each model."""
    pictures = [confusion_chart(each.name, each.counts, each.class_names) for each in confusions]
    note = (
        "Each row shows how the clips of one class were answered; the stronger the shade, the more of them. A strong "
    )
    note += (
        "diagonal is perfect. Two equally strong cells side by side are two classes that the model cannot tell apart."
    )
    return Section("Confusion matrices", note, [Pictures(pictures)] if pictures else [])


def unreadable_section(paths: Sequence[str], videos: int) -> Section:
    """Return the names of the videos that could not be read, and how they count.

    Args:
        paths: Unreadable videos.
        videos: Number of all videos.
    """
    note = f"{len(paths)} of {videos} videos could not be read. {UNREADABLE_RULE}"
    return Section("Unreadable videos", note, [Listing(paths)] if paths else [])


def details_section(details: dict[str, str]) -> Section:
    """Return the settings that the figures depend on."""
    return Section("Details", "How to get these numbers again.", [Definitions(details)] if details else [])


def shows_top5(figures: dict[str, Any], classes: int) -> bool:
    """Return whether top-5 accuracy is measured and can be below 1."""
    return "top5" in figures and classes > TOP_K
