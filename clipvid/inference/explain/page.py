"""Files of explanations: one page, and per video a strip of pictures, a video with overlays and the numbers.

Shapes: T frames, H x W patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image

from clipvid.adapters.marks import Arrows, FrameMatrix, HeatMap, Mark, Points, Tracks
from clipvid.data.synthetic.encoding import write_video
from clipvid.evaluation.charts import PALETTE
from clipvid.evaluation.report import (
    Block,
    ColorKey,
    Definitions,
    Folded,
    FramePicture,
    FrameStrip,
    Page,
    Paragraph,
    Pictures,
    Section,
    write_page,
)
from clipvid.evaluation.tables import Bar, Cell, Figure, Header, Table
from clipvid.files import json_text, replacing, write_text
from clipvid.inference.explain.charts import frames_chart, matrix_chart
from clipvid.inference.explain.drawing import (
    ARROW_COLOR,
    MAX_ARROWS,
    POINT_COLORS,
    draw_heat,
    draw_mark,
    enlarge,
    picture_uri,
)
from clipvid.inference.explain.reasons import Reasons
from clipvid.inference.explain.sentence import describe
from clipvid.inference.timeline import timeline_stem

TITLE = "Why this answer"
INTRODUCTION = (
    "Three questions about an answer: where in the picture the model found it, when in the clip, and how its adapter "
    "connected the frames. The maps show what the answer depends on. They do not show that the answer is right."
)
_TOP = 5  # classes in the table of answers
_FRAMES_PER_SECOND = 2
_SCALE = [to_hex(colormaps["inferno"](0.3 + 0.7 * step / 4)) for step in range(5)]


def save_explanations(folder: Path, explanations: Sequence[Reasons]) -> list[Path]:
    """Write `report.html` with all explanations, and a PNG, an MP4 and a JSON file for each. Return their paths."""
    report = folder / "report.html"
    write_page(report, explanation_page(explanations))
    written = [report]
    for reasons in explanations:
        stem = timeline_stem(reasons.name) if reasons.name else "clip"
        paths = [folder / f"{stem}{suffix}" for suffix in (".png", ".mp4", ".json")]
        save_strip(paths[0], reasons)
        save_overlay(paths[1], reasons)
        write_text(paths[2], json_text(record_of(reasons)) + "\n")
        written += paths
    return written


def explanation_page(explanations: Sequence[Reasons]) -> Page:
    """Return the report of one or several explanations."""
    sections = [section for reasons in explanations for section in sections_of(reasons, len(explanations) > 1)]
    lead = [describe(explanations[0])] if len(explanations) == 1 else []
    return Page(TITLE, [*lead, INTRODUCTION], [*sections, _details(explanations)])


def sections_of(reasons: Reasons, is_named: bool) -> list[Section]:
    """Return answer, where, when and how of one explanation.

    Args:
        reasons: The explanation.
        is_named: Show the name of the video in headings, and the sentence above the answer.
    """
    suffix = f" · {reasons.name or 'clip'}" if is_named else ""
    sections = [Section(f"The answer{suffix}", describe(reasons) if is_named else "", [_answers(reasons)])]
    sections.append(Section(f"Where{suffix}", _where_note(reasons), where_blocks(reasons)))
    if reasons.time is not None:
        sections.append(Section(f"When{suffix}", _WHEN_NOTE, when_blocks(reasons)))
    if reasons.adapters:
        sections.append(Section(f"How{suffix}", _HOW_NOTE, how_blocks(reasons)))
    return sections


_WHEN_NOTE = (
    "The loss of score when a frame is removed, by a mixture of its neighbors, and when frames change their order. "
    "A high loss means that the answer needs the frame or the order; below zero, it is better without. The score is "
    "the logit of the class, minus that of the others unless a clip may have several classes."
)
_HOW_NOTE = (
    "An adapter connects the frames, once in each block of the network. Lower blocks see small parts of the picture, "
    "upper blocks whole objects. The uppermost adapter is open; the others open with a click or the Enter key."
)


def _answers(reasons: Reasons) -> Table:
    best = reasons.probabilities.argsort(descending=True)[:_TOP].tolist()
    shown = dict.fromkeys([*best, reasons.target.label, *filter(None.__ne__, [reasons.target.against])])
    rows: list[list[Cell]] = []
    for index in shown:
        share = float(reasons.probabilities[index])
        mark = " (explained)" if index == reasons.target.label else ""
        bar = Bar(share, share, share, PALETTE[2])
        rows.append([f"{reasons.labels[index]}{mark}", Figure(share, None, 2, bar)])
    return Table(["class", Header("probability", "of the model, for this clip")], rows)


def _where_note(reasons: Reasons) -> str:
    against = "" if reasons.target.is_alone else " against all other classes"
    against = against if reasons.against is None else f" against “{reasons.against}”"
    return (
        f"Bright places speak for “{reasons.label}”{against}. The percentages are the share of each frame in "
        "the whole relevance."
    )


def where_blocks(reasons: Reasons) -> list[Block]:
    """Return the frames, and the relevance over them with its share of each frame."""
    shares = reasons.relevance.flatten(1).sum(dim=1).tolist()
    frames = [
        FramePicture(picture_uri(picture), f"{name} of the clip", [name])
        for picture, name in zip(enlarge(reasons.frames), reasons.frame_names, strict=True)
    ]
    heat = [
        FramePicture(picture_uri(picture), f"relevance at {name}: {share:.0%} of the whole", [f"{share:.0%}"])
        for picture, name, share in zip(
            draw_heat(reasons.frames, reasons.relevance), reasons.frame_names, shares, strict=True
        )
    ]
    legend = [ColorKey("relevance, from little to most", _SCALE)]
    return [FrameStrip(frames, "The clip, as the model sees it"), FrameStrip(heat, "Relevance", "", legend)]


def when_blocks(reasons: Reasons) -> list[Block]:
    """Return the importance of frames as a chart, and the answers for other orders as a table."""
    time = reasons.time
    assert time is not None
    values = ", ".join(
        f"{name} {value:+.2f}" for name, value in zip(reasons.frame_names, time.frames.tolist(), strict=True)
    )
    names = [name.removeprefix("frame ") for name in reasons.frame_names]
    blocks: list[Block] = [Pictures([frames_chart(time.frames, names, f"loss of score without a frame: {values}")])]
    if not time.orders:
        return blocks
    best = int(reasons.probabilities.argmax())
    rows: list[list[Cell]] = [
        ["as in the video", reasons.labels[best], Figure(float(reasons.probabilities[best]), None, 2), None]
    ]
    for order in time.orders:
        rows.append(
            [order.name, reasons.labels[order.label], Figure(order.probability, None, 2), Figure(order.drop, None, 2)]
        )
    headers = [Header("order of the frames"), Header("answer"), Header("probability"), Header("loss of score")]
    blocks.append(Table(headers, rows, text_columns=2))
    swaps: list[list[Cell]] = [
        [f"frames {first} and {first + 1}", Figure(value, None, 2)]
        for first, value in enumerate(time.swaps.tolist(), 1)
    ]
    table = Table([Header("neighbors that change places"), Header("loss of score")], swaps)
    return [*blocks, Folded("Neighboring frames swapped", [table])]


def how_blocks(reasons: Reasons) -> list[Block]:
    """Return the marks of every adapter, the uppermost open and the others folded."""
    blocks: list[Block] = []
    for place, own in enumerate(reversed(reasons.adapters)):
        title = f"{own.name} in block {own.block + 1}"
        drawn = [block for mark in own.marks for block in _mark_blocks(reasons, mark, title)]
        blocks += drawn if place == 0 else [Folded(title, drawn)]
    return blocks


def _mark_blocks(reasons: Reasons, mark: Mark, title: str) -> list[Block]:
    if isinstance(mark, FrameMatrix):
        return [Paragraph(mark.note, lead=f"{title}, {mark.title}"), Pictures([matrix_chart(mark, mark.title)])]
    pictures = draw_mark(reasons.frames, mark, reasons.relevance)
    shots = [
        FramePicture(picture_uri(picture), f"{title}, {mark.title} at {name}", _numbers(mark, index))
        for index, (picture, name) in enumerate(zip(pictures, reasons.frame_names, strict=True))
    ]
    return [FrameStrip(shots, f"{title}, {mark.title}", mark.note, _legend(mark))]


def _numbers(mark: HeatMap | Points | Tracks | Arrows, frame: int) -> list[str]:
    if isinstance(mark, HeatMap):
        return [f"mean {float(mark.values[frame].mean()):.2g}"]
    if isinstance(mark, Points):
        places = mark.positions[mark.frames == frame].tolist()
        return [f"→{x:.0%} ↓{y:.0%}" for x, y in places]
    return [f"frame {frame + 1}"]


def _legend(mark: HeatMap | Points | Tracks | Arrows) -> list[ColorKey]:
    if isinstance(mark, HeatMap):
        return [ColorKey(f"from 0 to {float(mark.values.max()):.2g}", _SCALE)]
    if isinstance(mark, Points):
        return [ColorKey(name, [POINT_COLORS[kind % len(POINT_COLORS)]]) for kind, name in enumerate(mark.names)]
    if isinstance(mark, Arrows):
        return [
            ColorKey(
                f"from a patch to where it is found again; the {MAX_ARROWS} strongest of each frame", [ARROW_COLOR]
            )
        ]
    return []


def _details(explanations: Sequence[Reasons]) -> Section:
    first = explanations[0]
    frames, grid = len(first.frames), first.relevance.shape[1:]
    values = {
        "method": ", ".join(f"{key}={value}" if key != "name" else str(value) for key, value in first.method.items()),
        "frames": str(frames),
        "patches of a frame": f"{grid[0]} x {grid[1]}",
        "videos": ", ".join(reasons.name or "frames in memory" for reasons in explanations),
    }
    return Section("Details", "", [Definitions(values)])


def save_strip(path: Path, reasons: Reasons) -> None:
    """Write a PNG with the frames in the upper row and their relevance in the lower row."""
    rows = [np.concatenate([np.asarray(picture) for picture in pictures], axis=1) for pictures in _both(reasons)]
    with replacing(path) as aside:
        Image.fromarray(np.concatenate(rows)).save(aside, format="PNG")


def save_overlay(path: Path, reasons: Reasons) -> None:
    """Write an MP4 with each frame beside its relevance, two frames per second."""
    frames = [
        np.concatenate([np.asarray(one), np.asarray(other)], axis=1) for one, other in zip(*_both(reasons), strict=True)
    ]
    write_video(path, np.stack(frames), _FRAMES_PER_SECOND)


def _both(reasons: Reasons) -> tuple[list[Image.Image], list[Image.Image]]:
    return enlarge(reasons.frames), draw_heat(reasons.frames, reasons.relevance)


def record_of(reasons: Reasons) -> dict[str, Any]:
    """Return the numbers of an explanation, JSON-ready."""
    time = reasons.time
    return {
        "video": reasons.name,
        "sentence": describe(reasons),
        "label": reasons.label,
        "against": reasons.against,
        "method": dict(reasons.method),
        "labels": reasons.labels,
        "probabilities": reasons.probabilities.tolist(),
        "times": reasons.times,
        "relevance": reasons.relevance.tolist(),
        "frames": None if time is None else time.frames.tolist(),
        "swaps": None if time is None else time.swaps.tolist(),
        "orders": None
        if time is None
        else [asdict(order) | {"label": reasons.labels[order.label]} for order in time.orders],
    }
