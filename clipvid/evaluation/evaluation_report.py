"""The report of an evaluation: zero-shot beside the model, gains by class, calibration, ensembles, hardest clips.

Shapes: V videos, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from clipvid.evaluation.adapters_section import adapters_section
from clipvid.evaluation.charts import Line, calibration_chart, gains_chart, sweep_chart
from clipvid.evaluation.clips import ClipStrip
from clipvid.evaluation.report import Block, LegendEntry, Listing, Page, Paragraph, Pictures, Section
from clipvid.evaluation.report_sections import (
    ZERO_SHOT_NAME,
    Confusion,
    Curve,
    ReportRow,
    clips_section,
    confusions_section,
    curves_section,
    details_section,
    pairs_section,
    results_section,
    row_colors,
    shows_top5,
    unreadable_section,
)
from clipvid.evaluation.several_labels_section import class_table_section, several_labels_section
from clipvid.evaluation.summary import MAIN, main_figure
from clipvid.evaluation.tables import Cell, Figure, Header, Strong, Table

MAX_CLASSES, MAX_GROUPS = 40, 4  # that a page shows one by one
CONTROLS = {
    "reversed": "on reversed clips",
    "shuffled": "on shuffled clips",
    "single": "on the first frame, repeated",
    "bag": "as a bag of frames, each seen alone",
}
INTRODUCTION = (
    "Answers of the model for videos that it was not trained on, beside those of CLIP without training. Reversed, "
    "shuffled and single-frame clips, and the bag of frames, show how much depends on the order of the frames: where "
    "they lose nothing, the model does not use motion."
)

_WHY_NOTE = (
    "Where the model finds its answer for each of these clips: bright places speak for the answer against the true "
    "class. A line opens with a click or the Enter key. `clipvid explain` shows more."
)


@dataclass(frozen=True)
class Evaluation:
    """Results of one model.

    Attributes:
        name: of the model.
        groups: figures by group of videos, as in metrics.json. The last group is the one that is shown in detail.
        class_names: K names of the last group.
        summary: figures over seeds, by name; see `metrics.mean_and_spread`.
        unreadable: paths of the videos of the last group that could not be read.
        clips: its hardest ones.
        explanations: of the model's answers for these clips.
        curves: histories of the training.
        details: settings that the figures depend on.
        introduction: paragraphs below the title.
    """

    name: str
    groups: dict[str, dict[str, Any]]
    class_names: Sequence[str]
    summary: dict[str, Any] = field(default_factory=dict)
    unreadable: Sequence[str] = ()
    clips: Sequence[ClipStrip] = ()
    explanations: Sequence[Block] = ()
    curves: Sequence[Curve] = ()
    details: dict[str, str] = field(default_factory=dict)
    introduction: Sequence[str] = (INTRODUCTION,)


def evaluation_page(evaluation: Evaluation) -> Page:
    """Return the report of an evaluation."""
    name, (last, figures) = evaluation.name, list(evaluation.groups.items())[-1]
    rows = [
        ReportRow(_row_name(label, group, evaluation), own)
        for group, measured in list(evaluation.groups.items())[-MAX_GROUPS:]
        for label, own in _conditions(name, measured)
    ]
    confusions = [
        Confusion(label, own["confusion"], evaluation.class_names)
        for label, own in _conditions(name, figures)
        if label in (name, ZERO_SHOT_NAME) and "confusion" in own
    ]
    colors = row_colors(rows, evaluation.curves)
    by_label = {label: colors[_row_name(label, last, evaluation)] for label, _ in _conditions(name, figures)}
    return Page(
        name,
        evaluation.introduction,
        [
            results_section(rows, colors),
            unreadable_section(evaluation.unreadable, main_figure(figures)[1]["count"]),
            pairs_section(rows, colors),
            _summary_section(evaluation.summary),
            *_figures_sections(rows, figures, len(evaluation.class_names)),
            _overlap_section(figures),
            _gains_section(figures, by_label[name]),
            _calibration_section(name, figures, by_label),
            _sweep_section(figures, by_label[name]),
            _views_section(figures),
            clips_section(evaluation.clips),
            Section("Why these answers", _WHY_NOTE, evaluation.explanations),
            curves_section(evaluation.curves, colors),
            adapters_section(evaluation.curves),
            confusions_section(confusions),
            details_section(evaluation.details),
        ],
    )


def _row_name(label: str, group: str, evaluation: Evaluation) -> str:
    return f"{label} · {group}" if len(evaluation.groups) > 1 else label


def _conditions(name: str, figures: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return labels and figures of what was measured on a group: zero-shot, the model, the model under each control."""
    zero_shot = [(ZERO_SHOT_NAME, figures["zero_shot"])] if "zero_shot" in figures else []
    controls = figures.get("controls", {})
    return [*zero_shot, (name, figures), *((f"{name} {CONTROLS[control]}", own) for control, own in controls.items())]


def _summary_section(summary: dict[str, Any]) -> Section:
    lines: list[list[Cell]] = []
    for name, run in summary.items():
        spread = None if run["std"] is None else f"± {run['std']:.3f}"
        seeds = ", ".join(f"{value:.3f}" for value in run["values"])
        lines.append([name.replace("_", " "), Strong(f"{run['mean']:.3f}"), spread, seeds])
    note = "Top-1: mean over the seeds, standard deviation between them, and each of them."
    return Section("The protocol", note, [Table(["", "mean", "spread", "seeds"], lines)] if lines else [])


def _figures_sections(rows: Sequence[ReportRow], figures: dict[str, Any], classes: int) -> list[Section]:
    if "map" in figures:
        return [several_labels_section(rows), class_table_section(figures)]
    return [_figures_section(rows, classes)]


def _figures_section(rows: Sequence[ReportRow], classes: int) -> Section:
    has_top5 = any(shows_top5(row.figures, classes) for row in rows)
    lines: list[list[Cell]] = []
    for row in rows:
        intervals = row.figures.get("intervals", {})
        cells: list[Cell] = [Figure(row.figures["top5"]["value"])] if has_top5 else []
        for key in ("mean_class", "nll", "ece"):
            value = row.figures[key]
            ends = intervals.get(key)
            cells.append(None if value is None else Figure(value, None if ends is None else (ends[0], ends[1])))
        lines.append([row.name, *cells])
    note = (
        "Mean-class accuracy weighs every class alike. NLL (mean negative log-likelihood) and ECE (expected "
        "calibration error, 15 bins) show whether the probabilities can be trusted: lower is better. Ranges are 95% "
        "bootstrap intervals over videos."
    )
    unreadable = max((row.figures.get("unreadable", 0) for row in rows), default=0)
    share, averaged = ("unreadable ones are wrong", "of the readable videos") if unreadable else ("", "")
    top5 = [Header("top-5", share)] if has_top5 else []
    headers = [Header(""), *top5, Header("mean class", share), Header("NLL", averaged), Header("ECE", averaged)]
    return Section("More figures", note, [Table(headers, lines)])


def _overlap_section(figures: dict[str, Any]) -> Section:
    overlap = figures.get("overlap")
    if not overlap:
        return Section("", "", [])
    note = f"{len(overlap['shared'])} of the {overlap['asked']} class names are among the {overlap['trained_on']} that "
    note += "the model was trained on. "
    unseen = overlap.get("unseen_top1")
    if unseen:
        top1 = Figure(unseen["value"], (unseen["low"], unseen["high"]))
        note += f"Top-1 on the {unseen['count']} videos of the others: {top1.number} ({top1.range})."
    names = Listing(overlap["shared"]) if overlap["shared"] else Paragraph("none")
    return Section("Classes that were trained on", note, [names])


def _gains_section(figures: dict[str, Any], color: str) -> Section:
    before, after = figures.get("zero_shot", {}).get("by_class"), figures["by_class"]
    if before is None:
        return Section("", "", [])
    gains = sorted(((after[name] - before[name], name) for name in after if after[name] is not None), reverse=True)
    left_out = max(len(gains) - MAX_CLASSES, 0)
    shown = [*gains[: MAX_CLASSES // 2], *gains[-MAX_CLASSES // 2 :]] if left_out else gains
    better, worse = sum(gain > 0 for gain, _ in gains), sum(gain < 0 for gain, _ in gains)
    measure = "Average precision" if "map" in figures else "Accuracy"
    note = f"{measure} of each class, the model's minus that of zero-shot CLIP: {better} classes gained, {worse} lost."
    note += f" {left_out} in the middle are not shown." if left_out else ""
    return Section("Gains by class", note, [Pictures([gains_chart(shown, color, note)])])


def _calibration_section(name: str, figures: dict[str, Any], colors: dict[str, str]) -> Section:
    if "calibration" not in figures:
        return Section("", "", [])
    lines, ends = [], []
    for label, own in ((ZERO_SHOT_NAME, figures.get("zero_shot")), (name, figures)):
        if own:
            curve = own["calibration"]
            lines.append(Line(label, curve["confidence"], curve["accuracy"], colors[label]))
            if own["ece"] is not None:
                ends.append(f"ECE of {label}: {own['ece']:.3f}")
    note = (
        "Videos in bins of the probability of the answer. On the dotted line, answers given with 70% are right 70% of "
    )
    note += "the time. Below it the model is too confident."
    legend = [LegendEntry(line.name, line.color, "solid") for line in lines]
    return Section("Calibration", note, [Pictures([calibration_chart(lines, "; ".join(ends))], legend)])


def _sweep_section(figures: dict[str, Any], color: str) -> Section:
    points = figures.get("sweep")
    if not points:
        return Section("", "", [])
    note = "Weights (1 - alpha) × zero-shot + alpha × fine-tuned. The best alpha of this curve was found on these very "
    note += "videos: choose alpha on others before you quote it."
    alt = "; ".join(f"alpha {point['alpha']:g}: {point['top1']['value']:.3f}" for point in points)
    return Section("Weight-space ensembling", note, [Pictures([sweep_chart(points, color, alt)])])


def _views_section(figures: dict[str, Any]) -> Section:
    views = figures.get("by_view")
    if not views:
        return Section("", "", [])
    lines: list[list[Cell]] = [
        [f"view {number}", Figure(view["value"], (view["low"], view["high"]))] for number, view in enumerate(views, 1)
    ]
    key, main = main_figure(figures)
    lines.append(["all together", Figure(main["value"])])
    name = "Top-1" if key == "top1" else MAIN[key]
    note = f"{name} of each view of the videos alone: clip by clip, and within a clip crop by crop."
    return Section("Views", note, [Table(["", MAIN[key]], lines)])
