"""Comparison of models as a self-contained HTML page, a Markdown table and a picture of clips.

Shapes: T frames of a clip, H x W their pixels, K classes.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import imread, imsave
from torch import Tensor

from clipvid import InputError
from clipvid.evaluation.tables import markdown_table
from clipvid.files import write_bytes

COLUMNS = {"object": "object top-1", "pairs": "motion pairs", "top1": "top-1"}
QUESTIONS = {"object": "what is it?", "pairs": "or its reverse?", "top1": "the whole label"}
PALETTE = ("#76839b", "#d97706", "#2456d6", "#0f9488", "#9d3fae", "#be3a4a", "#5f7a1c", "#7a5230")
MOST_NAMED_CLASSES = 110  # in a confusion matrix; UCF101 is the largest that can be read
DASHES = ("dashed", "solid", "dotted")
SHADES = LinearSegmentedColormap.from_list("shades", ["#f6f8fd", "#a9c0f5", "#2456d6", "#0b1f5c"])
INK, RIGHT, WRONG = "#1b2333", ("right", "✓", "#16794a"), ("wrong", "✗", "#c2293d")  # a word, a symbol, a color


@dataclass(frozen=True)
class Row:
    """Line of the table: a name and the figures of `metrics.json`, any of which may be absent."""

    name: str
    figures: dict[str, Any]


@dataclass(frozen=True)
class ClipStrip:
    """Clip to show: frames uint8 [T, 3, H, W], class, labels with probabilities by model (best first), and a name."""

    frames: Tensor
    truth: str
    predictions: dict[str, list[tuple[str, float]]]
    name: str = ""

    def __post_init__(self) -> None:
        shape = list(self.frames.shape)
        if self.frames.dtype != torch.uint8 or len(shape) != 4 or shape[1] != 3 or 0 in shape:
            raise InputError(f"frames: expected uint8 [T, 3, H, W], got {self.frames.dtype} {shape}")


@dataclass(frozen=True)
class Curve:
    """History of a run: entries with `step` and `loss`, and entries with `step` and `val_top1` (a share)."""

    name: str
    history: list[dict[str, Any]]


def render_rows(rows: list[Row]) -> str:
    """Return the rows as a Markdown table with 95% intervals, `0.93 (0.90-0.95)`."""
    columns = _columns(rows)
    lines = []
    for row in rows:
        figures = [row.figures.get(key) for key in columns]
        cells = [f"{f['value']:.2f} ({f['low']:.2f}-{f['high']:.2f})" if f else "-" for f in figures]
        lines.append([row.name, *cells])
    return markdown_table(["", *columns.values()], lines)


def _columns(rows: list[Row]) -> dict[str, str]:
    """Return the entries of `COLUMNS` that any row has."""
    return {key: name for key, name in COLUMNS.items() if any(row.figures.get(key) for row in rows)}


def strip_image(strip: ClipStrip, scale: int = 1) -> bytes:
    """Return a PNG of the frames side by side, enlarged bicubically: T * W * scale by H * scale pixels."""
    frames, target = strip.frames.cpu(), io.BytesIO()
    if scale > 1:
        large = torch.nn.functional.interpolate(frames.float(), scale_factor=scale, mode="bicubic")
        frames = large.round().clamp(0, 255).to(torch.uint8)
    imsave(target, np.ascontiguousarray(rearrange(frames, "t c h w -> h (t w) c").numpy()), format="png")
    return target.getvalue()


def save_strips(path: Path, clips: list[ClipStrip]) -> None:
    """Write a PNG with a row per clip: its frames, an inch high, its class and each model's best label."""
    if not clips:
        raise InputError("no clips to draw: expected at least one ClipStrip")
    strips = max(len(clip.frames) * clip.frames.shape[3] / clip.frames.shape[2] for clip in clips)
    width, height = strips + 4.4, 1.12 * len(clips)  # inches, the words included
    figure, target = Figure(figsize=(width, height), dpi=100, facecolor="white"), io.BytesIO()
    for index, clip in enumerate(clips):
        bottom, image = height - 1.12 * index - 1.06, imread(io.BytesIO(strip_image(clip, 2)))
        axes = figure.add_axes((0.06 / width, bottom / height, strips / width, 1 / height), anchor="W")
        axes.imshow(image)
        axes.vlines(np.arange(1, len(clip.frames)) * 2 * clip.frames.shape[3] - 0.5, *axes.get_ylim(), colors="white")
        axes.set_axis_off()
        lines = [(clip.truth, INK, "bold")]
        for model, labels in clip.predictions.items():
            for best, _ in labels[:1]:
                _, symbol, colour = RIGHT if best == clip.truth else WRONG
                lines.append((f"{symbol} {best}  ({model})", colour, "normal"))
        for line, (words, colour, weight) in enumerate(lines):
            at = (strips + 0.2) / width, (bottom + 1 - (line + 0.5) / len(lines)) / height
            figure.text(*at, words, color=colour, weight=weight, size=9, va="center", parse_math=False)
    figure.savefig(target, format="png")
    write_bytes(path, target.getvalue())


def write_report(
    path: Path,
    title: str,
    introduction: str,
    rows: list[Row],
    curves: list[Curve],
    confusions: dict[str, tuple[list[list[int]], list[str]]],
    clips: list[ClipStrip],
    details: dict[str, str],
    more: Sequence[str] = (),
) -> None:
    """Write one self-contained HTML page. Empty sections are omitted.

    Args:
        introduction: Plain text, with an empty line between paragraphs.
        confusions: Counts [K][K] (true class, predicted class) and the K class names, by model.
        more: Further sections, as returned by `section`.
    """
    names = dict.fromkeys([row.name for row in rows] + [curve.name for curve in curves])
    colours = {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(names)}
    sections = [_table(rows, colours), _by_pair(rows, colours), *more, _clips(clips), _curves(curves, colours)]
    lines = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in details.items())
    how = section("Details", "How to reproduce these numbers.", f"<dl>{lines}</dl>" if lines else "")
    sections += [_confusions(confusions), how]
    opening = "".join(f"<p>{escape(text)}</p>" for text in introduction.split("\n\n") if text.strip())
    header = f"<header><h1>{escape(title)}</h1>{opening}</header>"
    page = f"{HEAD.replace('TITLE', escape(title))}<body>{header}<main>{''.join(sections)}</main></body></html>\n"
    write_bytes(path, page.encode())


def _table(rows: list[Row], colours: dict[str, str]) -> str:
    lines, counts, columns = [], [], _columns(rows)
    for row in rows:
        cells = ""
        for key in columns:
            figure = row.figures.get(key)
            if figure:
                counts.append(figure["count"])
                interval = f"<small>{figure['low']:.2f}–{figure['high']:.2f}</small>"
                bar = _bar(figure, colours[row.name], chance=0.5 if key == "pairs" else None)
            cells += f"<td><b>{figure['value']:.2f}</b> {interval}{bar}</td>" if figure else "<td>–</td>"
        lines.append(f'<tr><th scope="row">{escape(row.name)}</th>{cells}</tr>')
    over = f" of {' to '.join(map(str, sorted({min(counts), max(counts)})))} clips" if counts else ""
    read = f"Each number is the share{over} answered right, from 0 to 1; the range is its 95% Wilson interval. "
    read += "The dotted line in motion pairs is chance, 0.50." if "pairs" in columns else ""
    heads = "".join(f'<th scope="col">{name} <small>{QUESTIONS[key]}</small></th>' for key, name in columns.items())
    table = f"<table><thead><tr><td></td>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return section("Results", read, table if rows else "")


def _bar(figure: dict[str, Any], colour: str, chance: float | None) -> str:
    """Return a bar from 0 to 1 with its interval and chance. The numbers are given as text too."""
    value, low, high = (100 * figure[key] for key in ("value", "low", "high"))
    fill = f'<i style="width:{value:.1f}%;background:{colour}"></i>'
    mark = f'<i class="chance" style="left:{100 * chance:.1f}%"></i>' if chance is not None else ""
    interval = f'<i class="interval" style="left:{low:.1f}%;width:{high - low:.1f}%"></i>'
    return f'<span class="bar" aria-hidden="true">{fill}{mark}{interval}</span>'


def _by_pair(rows: list[Row], colours: dict[str, str]) -> str:
    lines: dict[str, str] = {}
    for row in rows:
        for pair, figure in (row.figures.get("by_pair") or {}).items():
            words = f"<span>{escape(row.name)}</span> <b>{figure['value']:.2f}</b>"
            lines[pair] = lines.get(pair, "") + f"<li>{words}{_bar(figure, colours[row.name], 0.5)}</li>"
    cards = (f'<div class="card"><h3>{escape(pair)}</h3><ul>{bars}</ul></div>' for pair, bars in lines.items())
    read = (
        "Is a motion preferred to its reverse? The dotted line is chance, 0.50; a bar that ends left of it says that "
    )
    read += "the reverse is named more often. Dark strokes are 95% intervals."
    return section("Accuracy by motion pair", read, f'<div class="cards">{"".join(cards)}</div>' if lines else "")


def _clips(clips: list[ClipStrip]) -> str:
    read = "Each clip plays at the left and lies frame by frame beside it; below, what each model takes it for, with "
    read += f"probabilities: {RIGHT[1]} right, {WRONG[1]} wrong."
    return section("Clips", read, "".join(map(_clip, clips)))


def _clip(clip: ClipStrip) -> str:
    count, _, height, width = clip.frames.shape
    columns = math.ceil(count / math.ceil(count / 12))  # rows of equal length
    places = (100 * index / max(count - 1, 1) for index in range(count))
    frames = "".join(f'<i class="frame" style="background-position-x:{place:.4f}%"></i>' for place in places)
    player = '<i class="frame playing"></i>' if count > 1 else ""
    truth, said = escape(clip.truth), ""
    for model, labels in clip.predictions.items():
        word, symbol, _ = RIGHT if labels and labels[0][0] == clip.truth else WRONG
        lines = "".join(f"<li>{escape(name)} <small>{share:.0%}</small></li>" for name, share in labels)
        mark = f'<b role="img" aria-label="{word}">{symbol}</b>'
        said += f'<div class="{word}">{mark} <h4>{escape(model)}</h4><ol>{lines}</ol></div>' if labels else ""
    uri = _uri(strip_image(clip), "png")
    style = f"--strip:url({uri});--count:{count};--columns:{columns};--shape:{width}/{height}"
    alt = f'role="img" aria-label="{count} frames of a clip: {truth}"'
    strip = f'<div class="strip" {alt}>{player}<div class="frames">{frames}</div></div>'
    heading = f"{truth} <small>{escape(clip.name)}</small>" if clip.name else truth
    return f'<article class="card" style="{style}"><h3>{heading}</h3>{strip}<div class="said">{said}</div></article>'


def _curves(curves: list[Curve], colours: dict[str, str]) -> str:
    pictures, keys = "", {}
    for key, heading in (("loss", "training loss"), ("val_top1", "validation top-1")):
        axes, ends = blank_axes(5.4, 3.3), []
        for index, curve in enumerate(curves):
            points = [(at["step"], at[key]) for at in curve.history if key in at and math.isfinite(at[key])]
            if points:
                colour, dash = colours[curve.name], DASHES[index % len(DASHES)]
                axes.plot(*zip(*points, strict=True), color=colour, linestyle=dash, marker="o", markersize=3)
                ends.append(f"{curve.name} from {points[0][1]:.2f} to {points[-1][1]:.2f}")
                keys[curve.name] = f'<i style="border-color:{colour};border-style:{dash}"></i>{escape(curve.name)}'
        axes.set_ylim(0, 1.02 if key == "val_top1" else None)
        axes.grid(axis="y", color="#e2e6ee")
        pictures += picture(axes, f"{heading} over steps", f"{heading}: {'; '.join(ends)}") if ends else ""
    read = "A falling loss: the model fits its training clips. A rising top-1: it is right on clips it never saw."
    legend = "".join(f"<li>{key}</li>" for key in keys.values())
    body = f'<ul class="legend">{legend}</ul><div class="pictures">{pictures}</div>'
    return section("Learning curves", read, body if pictures else "")


def _confusions(confusions: dict[str, tuple[list[list[int]], list[str]]]) -> str:
    pictures = ""
    for name, (counts, classes) in confusions.items():
        table = np.array(counts, dtype=float)
        if table.shape != (len(classes), len(classes)):
            raise InputError(f"confusion of {name!r}: expected [K, K] for K={len(classes)} names, got {table.shape}")
        shares = table / table.sum(axis=1, keepdims=True).clip(min=1)
        recall = shares.diagonal().sum() / max((table.sum(axis=1) > 0).sum(), 1)
        named = len(classes) <= MOST_NAMED_CLASSES
        axes = blank_axes(*[2.2 + 0.17 * len(classes) if named else 9] * 2)
        axes.set(aspect="equal", xlabel="what the model said", ylabel="what was shown")
        edges = "white" if named else "none"
        axes.pcolormesh(shares, cmap=SHADES, vmin=0, vmax=1, edgecolors=edges, linewidth=0.6)
        axes.invert_yaxis()
        if named:
            middles = np.arange(len(classes)) + 0.5
            axes.set_xticks(middles, classes, rotation=90, fontsize=8, parse_math=False)
            axes.set_yticks(middles, classes, fontsize=8, parse_math=False)
        alt = f"Confusion matrix of {name}: {recall:.0%} on the diagonal, on average over classes"
        pictures += picture(axes, name, alt, "svg" if named else "png")
    read = "Each row says how the clips of one class were answered, from pale (none) to dark (all): a dark diagonal is "
    read += "perfect, and two equally dark neighbors are two classes that the model cannot distinguish."
    return section("Confusion matrices", read, f'<div class="pictures">{pictures}</div>' if pictures else "")


def section(heading: str, read: str, body: str) -> str:
    """Return a section of the page, or an empty string without a body."""
    return f'<section><h2>{heading}</h2><p class="read">{read}</p>{body}</section>\n' if body else ""


def blank_axes(width: float, height: float) -> Axes:
    """Return axes without a frame, alone on a figure of this size in inches."""
    axes = Figure(figsize=(width, height), layout="constrained").add_subplot()
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, colors="#4a5468")
    return axes


def picture(axes: Axes, caption: str, alt: str, kind: Literal["svg", "png"] = "svg") -> str:
    """Return the figure at its natural size. A narrow page shrinks it to 0.68 of it and then scrolls."""
    figure, target = axes.get_figure(root=True), io.BytesIO()
    assert figure is not None
    figure.savefig(target, format=kind, dpi=144, metadata={"Date": None} if kind == "svg" else None)
    size = 96 * figure.get_figwidth()  # CSS pixels
    style = f"max-width:{size:.0f}px;min-width:{0.68 * size:.0f}px"
    uri = _uri(target.getvalue(), "svg+xml" if kind == "svg" else kind)
    image = f'<img src="{uri}" alt="{escape(alt)}" style="{style}">'
    heading, scroll = f"<figcaption>{escape(caption)}</figcaption>", f'<div class="scroll" tabindex="0">{image}</div>'
    return f'<figure style="flex-basis:{0.9 * size:.0f}px">{heading}{scroll}</figure>'


def _uri(image: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


HEAD = Path(__file__).with_name("report_head.html").read_text(encoding="utf-8")
