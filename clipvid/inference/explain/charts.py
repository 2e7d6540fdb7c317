"""Charts of an explanation: importance of frames, and weights between frames.

Shapes: T frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from clipvid.adapters.marks import FrameMatrix
from clipvid.evaluation.charts import INK, PALETTE, SHADES, SOFT, Picture, blank_axes, chart_text, picture

_MAX_NUMBERED = 16  # frames of a matrix whose cells show their numbers


def frames_chart(values: Tensor, names: Sequence[str], alt: str) -> Picture:
    """Draw the importance [T] of frames as bars. Negative bars are frames that speak against the class."""
    count = len(values)
    axes = blank_axes(max(4.0, 0.8 + 0.55 * count), 2.6)
    heights = values.tolist()
    axes.bar(range(count), heights, color=[PALETTE[2] if height >= 0 else PALETTE[1] for height in heights], width=0.7)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xticks(range(count), [chart_text(name, 12) for name in names], fontsize=8, parse_math=False)
    axes.set_ylabel("loss of score")
    figure = axes.get_figure(root=True)
    assert figure is not None
    return picture(figure, "importance of each frame", alt)


def matrix_chart(mark: FrameMatrix, caption: str) -> Picture:
    """Draw the weights between frames as shaded cells, with their numbers if there are few."""
    values = mark.values.numpy()
    count = len(values)
    side = 1.1 + max(0.42 * min(count, 16), 1.6)
    axes = blank_axes(side, side)
    top = max(float(values.max()), 1e-12)
    axes.set(aspect="equal", xlabel="read frame", ylabel="reading frame")
    axes.pcolormesh(values, cmap=SHADES, vmin=0, vmax=top, edgecolors="white", linewidth=0.6)
    axes.invert_yaxis()
    places = np.arange(count) + 0.5
    names = [str(number) for number in range(1, count + 1)]
    step = -(-count // 16)
    axes.set_xticks(places[::step], names[::step], fontsize=8)
    axes.set_yticks(places[::step], names[::step], fontsize=8)
    axes.tick_params(colors=SOFT)
    if count <= _MAX_NUMBERED:
        for row, column in np.ndindex(values.shape):
            color = "white" if values[row, column] > 0.6 * top else INK
            number = f"{values[row, column]:.2f}".lstrip("0") or "0"
            axes.text(column + 0.5, row + 0.5, number, color=color, size=7, ha="center", va="center")
    figure = axes.get_figure(root=True)
    assert figure is not None
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    alt = f"{caption}: the largest weight, {top:.2f}, is that with which frame {row + 1} reads frame {column + 1}"
    return picture(figure, caption, alt)
