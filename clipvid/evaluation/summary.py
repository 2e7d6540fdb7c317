"""Figures of predictions for reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from torch.utils.data import DataLoader

from clipvid.data.manifest import ClassInfo
from clipvid.evaluation.loop import Predictions, predict
from clipvid.evaluation.metrics import (
    attribute_accuracy,
    bootstrap_intervals,
    calibration_curve,
    class_accuracy,
    class_figures,
    classification_metrics,
    pair_accuracy,
)
from clipvid.evaluation.several_labels import class_precisions, class_shares, several_label_metrics
from clipvid.model.feature_cache import FeatureCache
from clipvid.model.video_clip import VideoCLIP

MAIN = {"top1": "top-1", "map": "mAP"}  # key and name of the main figure


def main_figure(figures: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return key and share of the main figure: `top1`, or `map` for several labels per video."""
    key = next(key for key in MAIN if key in figures)
    return key, figures[key]


def summarize(predictions: Predictions, classes: Sequence[ClassInfo], ranks_only: bool = False) -> dict[str, Any]:
    """Return `classification_metrics` and figures that depend on attributes of the classes.

    `pairs` is the share scored above the class's `partner`, in total and by `pair`. `object` is the share with the
    right object. For several labels per video, return `several_label_metrics`.

    Args:
        predictions: The predictions.
        classes: The classes.
        ranks_only: See `ViewScores.averaged`.
    """
    labels, scores = predictions.labels, predictions.scores
    if labels.ndim == 2:
        return several_label_metrics(scores, labels, not ranks_only)
    figures = classification_metrics(scores, labels)
    attributes = [info.attributes for info in classes]
    if all({"partner", "pair"} <= values.keys() for values in attributes):
        partners = [int(values["partner"]) for values in attributes]
        shown = {attributes[label]["pair"] for label in labels.tolist() if partners[label] >= 0}
        if shown:
            figures["pairs"] = pair_accuracy(scores, labels, partners)
            figures["by_pair"] = {}
        for pair in sorted(shown):
            chosen = [values["partner"] if values["pair"] == pair else -1 for values in attributes]
            figures["by_pair"][pair] = pair_accuracy(scores, labels, list(map(int, chosen)))
    if all("object" in values for values in attributes):
        figures["object"] = attribute_accuracy(scores, labels, [values["object"] for values in attributes])
    return figures


def summarize_thoroughly(
    predictions: Predictions, classes: Sequence[ClassInfo], ranks_only: bool = False
) -> dict[str, Any]:
    """Return `summarize` with additional figures of a finished evaluation.

    `intervals` are 95% bootstrap intervals of mean_class, nll and ece. `calibration` is `metrics.calibration_curve`.
    `by_class` is the accuracy by class name, None for a class without videos. `classes` has `metrics.class_figures` by
    class name, and `macro_f1` is the mean of f1 over the classes with videos.

    For several labels per video, `by_class` is the average precision, and `classes` has `several_labels.class_shares`.
    """
    labels, scores = predictions.labels, predictions.scores
    names = [info.name for info in classes]
    if labels.ndim == 2:
        shares = {} if ranks_only else {"classes": dict(zip(names, class_shares(scores, labels), strict=True))}
        by_name = dict(zip(names, class_precisions(scores, labels), strict=True))
        return summarize(predictions, classes, ranks_only) | {"by_class": by_name} | shares
    by_class = class_figures(scores, labels)
    values = [own["f1"] for own in by_class if own["videos"]]
    return summarize(predictions, classes) | {
        "intervals": bootstrap_intervals(scores, labels),
        "calibration": calibration_curve(scores, labels),
        "by_class": dict(zip(names, class_accuracy(scores, labels), strict=True)),
        "classes": dict(zip(names, by_class, strict=True)),
        "macro_f1": sum(values) / len(values),
    }


def evaluate(
    accelerator: Accelerator,
    model: VideoCLIP,
    loader: DataLoader,
    classes: Sequence[ClassInfo],
    features: FeatureCache | None = None,
) -> tuple[Predictions, dict[str, Any]]:
    """Return predictions for every video of the loader, and their figures."""
    predictions = predict(accelerator, model, loader, features)
    return predictions, summarize(predictions, classes, not model.config.multi_label)


def describe(figures: dict[str, Any]) -> str:
    """Return the main figures in one line, with 95% intervals."""
    names = MAIN | {"pairs": "motion pairs", "object": "object"}
    shares = [(name, figures[key]) for key, name in names.items() if key in figures]
    parts = [f"{name} {share['value']:.3f} ({share['low']:.3f}-{share['high']:.3f})" for name, share in shares]
    parts += [f"F1 {figures['f1']:.3f}"] if figures.get("f1") is not None else []
    unreadable = f" ({figures['unreadable']} unreadable, counted as wrong)" if figures.get("unreadable") else ""
    return f"{', '.join(parts)}, {main_figure(figures)[1]['count']} videos{unreadable}"
