"""Charts of reports, as pictures that can stand in a page. They have no background, so that the page's shows through.

Shapes: K classes.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from clipvid import InputError
from clipvid.evaluation.clips import INK, WRONG, data_uri
from clipvid.files import printable

PALETTE = ("#76839b", "#d97706", "#2456d6", "#0f9488", "#9d3fae", "#be3a4a", "#5f7a1c", "#7a5230")
DASHES = ("solid", "dashed", "dotted")
SHADES = LinearSegmentedColormap.from_list("shades", ["#f6f8fd", "#a9c0f5", "#2456d6", "#0b1f5c"])
MAX_NAMED_CLASSES = 110  # in a confusion matrix; UCF101 is the largest that can be read
GRID, SOFT = "#c5ccd9", "#4a5468"


@dataclass(frozen=True)
class Picture:
    """A chart in a page.

    Attributes:
        uri: the image as a `data:` address.
        caption: its heading.
        alt: what it shows, in words.
        width: natural width in CSS pixels.
    """

    uri: str
    caption: str
    alt: str
    width: float


@dataclass(frozen=True)
class Line:
    """A named line of a chart."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: str
    dash: str = "solid"


def blank_axes(width: float, height: float) -> Axes:
    """Return axes without a frame, alone on a figure of that many inches."""
    axes = Figure(figsize=(width, height), layout="constrained").add_subplot()
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, colors=SOFT)
    axes.xaxis.label.set_color(SOFT)
    axes.yaxis.label.set_color(SOFT)
    return axes


def picture(figure: Figure, caption: str, alt: str, kind: Literal["svg", "png"] = "svg") -> Picture:
    """Return a figure as a picture. SVG keeps its text as text, so that names of all scripts are shown."""
    target = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else None
    options: Any = {"svg.fonttype": "none", "svg.hashsalt": "clipvid", "font.family": "sans-serif"}
    with matplotlib.rc_context(options), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # the browser has other fonts
        figure.savefig(target, format=kind, dpi=144, transparent=True, metadata=metadata)
    uri = data_uri(target.getvalue(), "svg+xml" if kind == "svg" else kind)
    return Picture(uri, caption, alt, 96 * figure.get_figwidth())


def line_chart(lines: Sequence[Line], caption: str, alt: str, is_share: bool) -> Picture:
    """Draw lines over training steps. is_share: the values are between 0 and 1."""
    axes = blank_axes(5.4, 3.3)
    for line in lines:
        axes.plot(line.x, line.y, color=line.color, linestyle=line.dash, marker="o", markersize=3)
    axes.set_ylim(0, 1.02 if is_share else None)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color=GRID, alpha=0.5)
    return _picture(axes, caption, alt)


def confusion_chart(name: str, counts: list[list[int]], classes: Sequence[str]) -> Picture:
    """Draw a confusion matrix.

    Args:
        name: of the model.
        counts: [K, K] by true and by predicted class.
        classes: K names.

    Raises:
        InputError: another number of names than rows and columns.
    """
    table = np.array(counts, dtype=float)
    if table.shape != (len(classes), len(classes)):
        raise InputError(f"confusion of {name!r}: expected [K, K] for K={len(classes)} names, got {table.shape}")
    shares = table / table.sum(axis=1, keepdims=True).clip(min=1)
    recall = shares.diagonal().sum() / max((table.sum(axis=1) > 0).sum(), 1)
    is_named = len(classes) <= MAX_NAMED_CLASSES
    names = [chart_text(each, 40) for each in classes]
    side = 1.2 + 0.06 * max(map(len, names), default=0) + max(0.2 * len(classes), 2.2) if is_named else 9
    axes = blank_axes(side, side)
    axes.set(aspect="equal", xlabel="predicted class", ylabel="true class")
    edges = "white" if is_named else "none"
    axes.pcolormesh(shares, cmap=SHADES, vmin=0, vmax=1, edgecolors=edges, linewidth=0.6)
    axes.invert_yaxis()
    if is_named:
        middles = np.arange(len(classes)) + 0.5
        axes.set_xticks(middles, names, rotation=90, fontsize=8, parse_math=False)
        axes.set_yticks(middles, names, fontsize=8, parse_math=False)
    alt = f"Confusion matrix of {name}: {recall:.0%} on the diagonal, on average over classes"
    return _picture(axes, name, alt, "svg" if is_named else "png")


def gains_chart(gains: Sequence[tuple[float, str]], color: str, alt: str) -> Picture:
    """Draw a bar for the gain of each class, from -1 to 1."""
    axes = blank_axes(8, 0.8 + 0.24 * len(gains))
    colors = [color if gain >= 0 else WRONG.color for gain, _ in gains]
    axes.barh(range(len(gains)), [gain for gain, _ in gains], color=colors)
    axes.set_yticks(range(len(gains)), [chart_text(name) for _, name in gains], fontsize=8, parse_math=False)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlim(-1.02, 1.02)
    return _picture(axes, "gain in accuracy", alt)


def calibration_chart(lines: Sequence[Line], alt: str) -> Picture:
    """Draw accuracy over confidence."""
    axes = blank_axes(5.4, 4)
    axes.plot([0, 1], [0, 1], color=GRID, linestyle="dotted")
    for line in lines:
        axes.plot(line.x, line.y, color=line.color, marker="o", markersize=4)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="confidence", ylabel="accuracy")
    return _picture(axes, "accuracy by confidence", alt)


def sweep_chart(points: Sequence[dict[str, Any]], color: str, alt: str) -> Picture:
    """Draw top-1 with its interval over the alpha of weight-space ensembles."""
    axes = blank_axes(5.4, 3.3)
    alphas, top1 = [point["alpha"] for point in points], [point["top1"] for point in points]
    low, high = ([figure[end] for figure in top1] for end in ("low", "high"))
    axes.fill_between(alphas, low, high, color=color, alpha=0.2, linewidth=0)
    axes.plot(alphas, [figure["value"] for figure in top1], color=color, marker="o", markersize=4)
    axes.set(xlabel="alpha", ylabel="top-1", ylim=(0, 1.02))
    return _picture(axes, "top-1 by alpha", alt)


def finite_points(history: Sequence[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Return steps and values of the entries of a history that have a finite `key`."""
    points = [(entry["step"], entry[key]) for entry in history if key in entry and math.isfinite(entry[key])]
    return [step for step, _ in points], [value for _, value in points]


def _picture(axes: Axes, caption: str, alt: str, kind: Literal["svg", "png"] = "svg") -> Picture:
    figure = axes.get_figure(root=True)
    assert figure is not None
    return picture(figure, caption, alt, kind)


def chart_text(name: str, length: int = 60) -> str:
    """Return a name that fits in a chart: printable, cut, and not taken for a hidden entry of a legend."""
    text = printable(name)
    text = text if len(text) <= length else f"{text[: length - 1]}…"
    return f" {text}" if text.startswith("_") else text
