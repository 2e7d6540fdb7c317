"""Sections of a report about several labels per video."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clipvid.evaluation.report import Section
from clipvid.evaluation.report_sections import ReportRow
from clipvid.evaluation.several_labels import THRESHOLD
from clipvid.evaluation.tables import Cell, Figure, Header, Table

_SHARES = ("precision", "recall", "f1")
_MOST_CLASSES = 200


def several_labels_section(rows: Sequence[ReportRow]) -> Section:
    """Return micro-averaged figures of all rows."""
    columns = {
        "map_micro": "micro mAP",
        "precision": "precision",
        "recall": "recall",
        "f1": "F1",
        "macro_f1": "mean F1",
    }
    lines: list[list[Cell]] = [[row.name, *(_figure(row.figures.get(key)) for key in columns)] for row in rows]
    note = (
        "Micro mAP ranks all pairs of video and class together. A pair counts as answered from a probability of "
        f"{THRESHOLD:g}. Mean F1 weighs every class alike. A model that was not trained for several labels ranks the "
        "videos, but has no probabilities."
    )
    return Section("More figures", note, [Table(["", *columns.values()], lines)])


def class_table_section(figures: dict[str, Any]) -> Section:
    """Return average precision, precision, recall and F1 of each class, the hardest class first."""
    precisions, shares = figures["by_class"], figures.get("classes", {})
    ordered = sorted(precisions.items(), key=lambda item: (item[1] is None, item[1] or 0.0))
    lines: list[list[Cell]] = [
        [name, _figure(value), *(_figure(shares.get(name, {}).get(key)) for key in _SHARES), _count(shares, name)]
        for name, value in ordered[:_MOST_CLASSES]
    ]
    headers = [Header("class"), Header("average precision"), *(Header(name) for name in ("precision", "recall", "F1"))]
    note = "The hardest class first. A class without videos has no average precision."
    return Section("Classes", note, [Table([*headers, Header("videos")], lines)])


def _figure(value: float | None) -> Figure | None:
    return None if value is None else Figure(value)


def _count(shares: dict[str, Any], name: str) -> str | None:
    return str(shares[name]["videos"]) if name in shares else None
