"""Report of an evaluation: zero-shot and the model, gains by class, calibration, ensembles, hardest clips.

Shapes: V videos, K classes.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from clipvid.evaluation.conditions import FORWARD
from clipvid.evaluation.loop import Average, Predictions
from clipvid.evaluation.metrics import answered
from clipvid.evaluation.report import PALETTE, ClipStrip, Row, blank_axes, picture, section, write_report
from clipvid.evaluation.results import Group

ZERO_SHOT, MODEL = PALETTE[0], PALETTE[2]
MOST_CLASSES, MOST_GROUPS = 40, 4  # that a page shows one by one
CONTROLS = {
    "reversed": "on reversed clips",
    "shuffled": "on shuffled clips",
    "single": "on the first frame, repeated",
    "bag": "as a bag of frames, each seen alone",
}
INTRODUCTION = (
    "What the model says of videos that it was not trained on, and what CLIP says of them without training. Reversed, "
    "shuffled and single-frame clips, and the bag of frames, say how much of it comes from the order of the frames: "
    "where they lose nothing, the model does not use motion."
)


def write_evaluation_report(
    path: Path,
    name: str,
    metrics: dict[str, Any],
    groups: list[Group],
    clips: list[ClipStrip],
    details: dict[str, str],
) -> None:
    """Write one self-contained page. The last group is shown in detail, with its hardest `clips`.

    `metrics` is the content of metrics.json, with the figures of the groups under `groups`.
    """
    last = groups[-1]
    figures = metrics["groups"][last.name]
    many = len(groups) > 1
    rows = [
        Row(f"{label} · {group.name}" if many else label, found)
        for group in groups[-MOST_GROUPS:]
        for label, found in conditions(name, metrics["groups"][group.name])
    ]
    confusions = {
        label: (found["confusion"], last.manifest.class_names)
        for label, found in conditions(name, figures)
        if label in (name, "zero-shot CLIP")
    }
    more = [
        _summary(metrics),
        _all_figures(rows),
        _overlap(figures),
        _gains(figures),
        _calibration(name, figures),
        _sweep(figures),
        _views(figures),
    ]
    write_report(path, name, INTRODUCTION, rows, [], confusions, clips, details, more)


def conditions(name: str, figures: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return labels and figures of a group's conditions: zero-shot, the model, the model under each control."""
    found = [("zero-shot CLIP", figures["zero_shot"])] if "zero_shot" in figures else []
    controls = figures.get("controls", {})
    return [*found, (name, figures), *((f"{name} {CONTROLS[control]}", own) for control, own in controls.items())]


def hardest(group: Group, average: Average, count: int) -> list[int]:
    """Return indices of the readable videos with the least probability of their class, worst first."""
    predictions = group.predictions(FORWARD, average)
    given = answered(predictions.scores)
    truth = predictions.scores.gather(1, predictions.labels[:, None])[:, 0].masked_fill(~given, 2.0)
    return predictions.indices[truth.argsort(stable=True)][: min(count, int(given.sum()))].tolist()


def best_answers(predictions: Predictions, names: list[str], index: int, count: int = 3) -> list[tuple[str, float]]:
    """Return the best labels for a video, with probabilities. Return none for a video that has no scores."""
    found = (predictions.indices == index).nonzero()
    if not len(found):
        return []
    row = predictions.scores[int(found[0])]
    best = row.topk(min(count, len(names)))
    return [(names[place], float(share)) for share, place in zip(best.values, best.indices, strict=True)]


def _table(heads: list[str], lines: list[list[str]]) -> str:
    top = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    body = ""
    for first, *others in lines:
        cells = "".join(f"<td>{cell}</td>" for cell in others)
        body += f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>'
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _summary(metrics: dict[str, Any]) -> str:
    found = metrics.get("few_shot") or metrics.get("base_to_novel")
    if not found:
        return ""
    lines = []
    for name, run in found.items():
        spread = "–" if run["std"] is None else f"± {run['std']:.3f}"
        lines.append(
            [name.replace("_", " "), f"<b>{run['mean']:.3f}</b>", spread, ", ".join(f"{v:.3f}" for v in run["values"])]
        )
    read = "Top-1: mean over the seeds, standard deviation between them, and each of them."
    return section("The protocol", read, _table(["", "mean", "spread", "seeds"], lines))


def _all_figures(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        ranges = row.figures.get("intervals", {})
        cells = [f"<b>{row.figures['top5']['value']:.3f}</b>"]
        for key in ("mean_class", "nll", "ece"):
            value = row.figures[key]
            interval = f" <small>{ranges[key][0]:.3f}–{ranges[key][1]:.3f}</small>" if key in ranges else ""
            cells.append("–" if value is None else f"<b>{value:.3f}</b>{interval}")
        lines.append([row.name, *cells])
    read = "Mean-class accuracy weighs every class alike. NLL and ECE (15 bins) ask whether the probabilities can be "
    read += "believed: lower is better. Ranges are 95% bootstrap intervals over videos."
    return section("More figures", read, _table(["", "top-5", "mean class", "NLL", "ECE"], lines))


def _overlap(figures: dict[str, Any]) -> str:
    found = figures.get("overlap")
    if not found:
        return ""
    unseen = found.get("unseen_top1")
    told = f"Of the {found['asked']} classes asked about, {len(found['shared'])} have the name of one of the "
    told += f"{found['trained_on']} that the model was trained on. "
    if unseen:
        told += f"Top-1 on the {unseen['count']} videos of the others: {unseen['value']:.3f} "
        told += f"({unseen['low']:.3f}–{unseen['high']:.3f})."
    names = f"<p>{escape(', '.join(found['shared']))}</p>" if found["shared"] else "<p>none</p>"
    return section("Classes that were trained on", told, names)


def _gains(figures: dict[str, Any]) -> str:
    before, after = figures.get("zero_shot", {}).get("by_class"), figures["by_class"]
    if before is None:
        return ""
    gains = sorted(((after[name] - before[name], name) for name in after if after[name] is not None), reverse=True)
    left_out = max(len(gains) - MOST_CLASSES, 0)
    shown = [*gains[: MOST_CLASSES // 2], *gains[-MOST_CLASSES // 2 :]] if left_out else gains
    axes = blank_axes(8, 0.8 + 0.2 * len(shown))
    axes.barh(range(len(shown)), [gain for gain, _ in shown], color=[MODEL if g >= 0 else "#c2293d" for g, _ in shown])
    axes.set_yticks(range(len(shown)), [name for _, name in shown], fontsize=8, parse_math=False)
    axes.axvline(0, color="#1b2333", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlim(-1.02, 1.02)
    better, worse = sum(gain > 0 for gain, _ in gains), sum(gain < 0 for gain, _ in gains)
    read = f"Accuracy of each class, the model's less zero-shot CLIP's: {better} classes gained, {worse} lost."
    read += f" {left_out} in the middle are not shown." if left_out else ""
    return section("Gains by class", read, _pictures(picture(axes, "gain in accuracy", read, "png")))


def _calibration(name: str, figures: dict[str, Any]) -> str:
    axes, ends = blank_axes(5.4, 4), []
    axes.plot([0, 1], [0, 1], color="#c5ccd9", linestyle="dotted")
    for label, found, colour in (("zero-shot CLIP", figures.get("zero_shot"), ZERO_SHOT), (name, figures, MODEL)):
        if found:
            curve = found["calibration"]
            axes.plot(curve["confidence"], curve["accuracy"], color=colour, marker="o", markersize=4, label=label)
            if found["ece"] is not None:
                ends.append(f"ECE of {label}: {found['ece']:.3f}")
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="confidence", ylabel="accuracy")
    for text in axes.legend(frameon=False, fontsize=8).get_texts():
        text.set_parse_math(False)  # a name may hold a dollar sign
    read = "Videos in bins of the probability of the answer: on the dotted line, an answer given with 70% is right 70% "
    read += "of the time; below it the model is too sure of itself."
    caption = "; ".join(ends)
    return section("Calibration", read, _pictures(picture(axes, "accuracy by confidence", caption, "png")))


def _sweep(figures: dict[str, Any]) -> str:
    points = figures.get("sweep")
    if not points:
        return ""
    axes = blank_axes(5.4, 3.3)
    alphas = [point["alpha"] for point in points]
    axes.fill_between(
        alphas,
        [point["top1"]["low"] for point in points],
        [point["top1"]["high"] for point in points],
        color="#a9c0f5",
        alpha=0.5,
        linewidth=0,
    )
    axes.plot(alphas, [point["top1"]["value"] for point in points], color=MODEL, marker="o", markersize=4)
    axes.set(xlabel="alpha", ylabel="top-1", ylim=(0, 1.02))
    read = "Weights (1 - alpha) × zero-shot + alpha × fine-tuned. The best alpha of this curve was found on these very "
    read += "videos: choose alpha on others before you quote it."
    alt = "; ".join(f"alpha {point['alpha']:g}: {point['top1']['value']:.3f}" for point in points)
    return section("Weight-space ensembling", read, _pictures(picture(axes, "top-1 by alpha", alt, "png")))


def _views(figures: dict[str, Any]) -> str:
    views = figures.get("by_view")
    if not views:
        return ""
    lines = [
        [f"view {number}", f"<b>{view['value']:.3f}</b> <small>{view['low']:.3f}–{view['high']:.3f}</small>"]
        for number, view in enumerate(views, 1)
    ]
    lines.append(["all together", f"<b>{figures['top1']['value']:.3f}</b>"])
    read = "Top-1 of each view of the videos alone: clip by clip, and within a clip crop by crop."
    return section("Views", read, _table(["", "top-1"], lines))


def _pictures(pictures: str) -> str:
    return f'<div class="pictures">{pictures}</div>'
