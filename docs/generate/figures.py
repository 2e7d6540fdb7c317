"""Figures of the blocks as inline SVG: where an adapter is in a block of the tower, and its steps.

Dashed boxes are frozen parts of CLIP. Colors come from `assets/extra.css`, so that figures follow the color scheme.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Literal

BOX_WIDTH, BOX_HEIGHT, GAP = 212, 34, 30
STEP_WIDTH, STEP_HEIGHT, STEP_GAP = 330, 40, 16
LEFT, TOP, STEPS_LEFT = 40, 46, 330


@dataclass(frozen=True)
class Figure:
    """Place of an adapter, and its steps from input to output.

    Attributes:
        place: Place where the block adds the adapter's update.
        steps: Title and note of each step.
    """

    name: str
    place: Literal["before_attention", "after_attention"]
    steps: tuple[tuple[str, str], ...]


FIGURES = {
    "ila": Figure(
        "ILA",
        "before_attention",
        (
            ("Linear, LayerNorm", "a = LN(W x), all tokens"),
            ("Interactive block on pairs of frames", "3x3 convolutions of [a_t, a_t+1] give f"),
            ("Interactive points", "f gives one point in each of the two frames"),
            ("Masks around the points", "separable, flat inside a radius of 0.25"),
            ("Aligned patches", "mask times a, averaged over the pairs of a frame"),
            ("Interactive feature", "f, convolution over time, Linear to D"),
            ("Two zero-initialized linears, sum", "the update [B, T, P+N, D]"),
        ),
    ),
    "ata": Figure(
        "ATA",
        "before_attention",
        (
            ("Cosine of neighboring patches", "[B, T-1, N, N], without gradient"),
            ("One-to-one matching", "Kuhn-Munkres for each pair of frames"),
            ("Tubes", "matches composed along time, from frame 0"),
            ("LayerNorm, gather by tube", "plus a zero-initialized embedding of time"),
            ("Attention over T in each tube", "weights copied from the block's attention"),
            ("Scatter back, zero-initialized linear", "the update [B, T, P+N, D]"),
        ),
    ),
    "gta": Figure(
        "GTA",
        "after_attention",
        (
            ("LayerNorm, Linear", "values v in G channel groups"),
            ("Pixel branch", "y_g[t] = sum over h, s of A_gh[t, s] v_h[s]"),
            ("Region branch", "softmax regions, own matrices, mapped back"),
            ("Sum of the branches", "A is learned and the same for all clips"),
            ("Zero-initialized linear", "the update [B, T, P+N, D]"),
        ),
    ),
    "sifa": Figure(
        "SIFA",
        "after_attention",
        (
            ("Motion feature", "m = sigmoid(x_t - x_t-1) x_t + x_t"),
            ("Offsets of k x k taps", "a convolution of m that starts at zero"),
            ("Correlation at each tap", "previous frame with sampled current frame"),
            ("Weighted sum of the samples", "without softmax"),
            ("Shift by one frame", "frame t gets the sum of t + 1, the last gets 0"),
            ("Zero-initialized LayerNorm", "the update of patches; prefix tokens get 0"),
        ),
    ),
    "temporal_conv": Figure(
        "Temporal conv.",
        "after_attention",
        (
            ("Three products", "W_-1 x, W_0 x and W_1 x at every location"),
            ("Move by one frame", "W_-1 x to the next frame, W_1 x to the one before"),
            ("Sum", "zeros before the first and after the last frame"),
            ("The matrices start at zero", "the update [B, T, P+N, D]"),
        ),
    ),
    "attention": Figure(
        "Divided attention",
        "before_attention",
        (
            ("LayerNorm", "plus a zero-initialized embedding of time"),
            ("Attention over T at each place", "weights copied from the block's attention"),
            ("Zero-initialized linear", "the update [B, T, P+N, D]"),
        ),
    ),
    "st_adapter": Figure(
        "ST-Adapter",
        "after_attention",
        (
            ("Linear down to C channels", "384, or half of the width if that is less"),
            ("Zero-initialized depthwise convolution", "3 frames x 1 x 1 places by default"),
            ("Linear up to D channels", "the update of patches; prefix tokens get 0"),
        ),
    ),
}


def draw(figure: Figure) -> str:
    """Return the SVG of a figure."""
    adapter = ("adapter", figure.name, "trained")
    attention, mlp = ("frozen", "LayerNorm, attention", "frozen"), ("frozen", "LayerNorm, MLP", "frozen")
    early = figure.place == "before_attention"
    parts = [adapter, attention, mlp] if early else [attention, adapter, mlp]
    shapes, bottom, adapter_middle = _block(parts)
    steps, steps_bottom = _steps(figure, adapter_middle)
    height = max(bottom, steps_bottom) + 16
    width = STEPS_LEFT + STEP_WIDTH + 10
    label = escape(f"The steps of {figure.name} and its place in a block")
    arrow = (
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="head" d="M0 0 L8 4 L0 8 z"/></marker></defs>'
    )
    content = "".join([arrow, *shapes, *steps])
    return (
        f'<svg class="block-figure" role="img" aria-label="{label}" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" xmlns="http://www.w3.org/2000/svg">{content}</svg>\n'
    )


def _block(parts: list[tuple[str, str, str]]) -> tuple[list[str], int, int]:
    """Return the residual stream with its three branches, its lower end and the middle of the adapter."""
    stream, box = LEFT - 18, LEFT + 20
    shapes = [_text(stream - 6, 20, "x  [B, T, P+N, D]", "note")]
    y, adapter_middle = TOP, 0
    for kind, title, note in parts:
        middle = y + BOX_HEIGHT // 2
        end = y + BOX_HEIGHT + 16
        shapes += [
            _line(f"M{stream} {y - 10} H{box + BOX_WIDTH // 2} V{y - 1}"),
            _box(box, y, BOX_WIDTH, BOX_HEIGHT, "box frozen" if kind == "frozen" else "adapter"),
            _text(box + 10, middle + 4, title, "title" if kind == "adapter" else ""),
            _text(box + BOX_WIDTH - 10, middle + 4, note, "note", "end"),
            _line(f"M{box + BOX_WIDTH // 2} {y + BOX_HEIGHT} V{end} H{stream + 9}", arrow=True),
            f'<circle class="sum" cx="{stream}" cy="{end}" r="8"/>',
            _text(stream, end + 4, "+", "", "middle"),
        ]
        shapes.append(_line(f"M{stream} {y - 20} V{end - 8}"))
        if kind == "adapter":
            adapter_middle = middle
        y = end + GAP
    shapes.append(_line(f"M{stream} {y - GAP + 8} V{y}", arrow=True))
    return shapes, y, adapter_middle


def _steps(figure: Figure, adapter_middle: int) -> tuple[list[str], int]:
    """Return the steps from top to bottom, joined to the adapter by a dotted line, and their lower end."""
    shapes = [_text(STEPS_LEFT, 20, f"Inside {figure.name}", "title")]
    y = 34
    for index, (title, note) in enumerate(figure.steps):
        shapes += [
            _box(STEPS_LEFT, y, STEP_WIDTH, STEP_HEIGHT, "box"),
            _text(STEPS_LEFT + 10, y + 16, title),
            _text(STEPS_LEFT + 10, y + 32, note, "note"),
        ]
        if index + 1 < len(figure.steps):
            middle = STEPS_LEFT + STEP_WIDTH // 2
            shapes.append(_line(f"M{middle} {y + STEP_HEIGHT} V{y + STEP_HEIGHT + STEP_GAP - 1}", arrow=True))
        y += STEP_HEIGHT + STEP_GAP
    bottom = y - STEP_GAP
    right = LEFT + 20 + BOX_WIDTH
    for edge in (34, bottom):
        shapes.append(f'<path class="leader" d="M{right} {adapter_middle} L{STEPS_LEFT - 6} {edge}"/>')
    return shapes, bottom


def _box(x: int, y: int, width: int, height: int, kind: str) -> str:
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="5"/>'


def _text(x: int, y: int, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(path: str, arrow: bool = False) -> str:
    end = ' marker-end="url(#arrow)"' if arrow else ""
    return f'<path class="line" d="{path}"{end}/>'
