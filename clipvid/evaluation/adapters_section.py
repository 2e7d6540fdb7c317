"""Section of a report about what the adapters of a run did, from the measurements of `training.diagnose`."""

from __future__ import annotations

from collections.abc import Sequence

from clipvid.evaluation.charts import DASHES, PALETTE, Line, finite_points, line_chart
from clipvid.evaluation.report import LegendEntry, Pictures, Section
from clipvid.evaluation.report_sections import Curve
from clipvid.evaluation.tables import Cell, Figure, Table

UPDATE, WITHOUT = "update/", "without/"
_NOTE = (
    "The length of each adapter's update relative to the stream that it is added to: below 0.1 an adapter does little, "
    "above 1 it replaces what CLIP computed. The table has the validation top-1 without single adapters."
)


def adapters_section(curves: Sequence[Curve]) -> Section:
    """Return lengths of updates over steps, and accuracies without single adapters; empty without measurements."""
    parts: list[Pictures | Table] = []
    for curve in curves:
        names = sorted({key for entry in curve.history for key in entry if key.startswith(UPDATE)}, key=_place)
        lines, legend = [], []
        for index, key in enumerate(names):
            steps, values = finite_points(curve.history, key)
            name, color = key.removeprefix(UPDATE), PALETTE[index % len(PALETTE)]
            dash = DASHES[index // len(PALETTE) % len(DASHES)]
            lines.append(Line(name, steps, values, color, dash))
            legend.append(LegendEntry(name, color, dash))
        if lines:
            alt = "; ".join(f"{line.name} {line.y[-1]:.2f}" for line in lines)
            parts.append(Pictures([line_chart(lines, "length of updates over steps", alt, False)], legend))
        parts += _ablation(curve)
    return Section("Adapters", _NOTE, parts) if parts else Section("Adapters", "", [])


def _ablation(curve: Curve) -> list[Table]:
    empty: dict[str, float] = {}
    final = next((entry for entry in reversed(curve.history) if any(key.startswith(WITHOUT) for key in entry)), empty)
    names = sorted((key for key in final if key.startswith(WITHOUT)), key=_place)
    rows: list[list[Cell]] = [[key.removeprefix(WITHOUT), Figure(final[key], None, 3)] for key in names]
    return [Table(["switched off", "validation top-1"], rows)] if rows else []


def _place(key: str) -> tuple[str, int]:
    """Return adapter and block for sorting; other names come last."""
    name, _, block = key.rpartition(".")
    return (name, int(block)) if block.isdecimal() else ("~", 0)
