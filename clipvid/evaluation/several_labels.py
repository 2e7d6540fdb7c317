"""Metrics of several labels per video, as pure functions of tensors on the CPU.

Shapes: V videos, K classes. Scores are probabilities [V, K], labels bool [V, K]. A row of zeros is an unreadable video.
Its labels count as not found.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipvid import InputError
from clipvid.evaluation.metrics import answered

THRESHOLD = 0.5
_RESAMPLES, _MOST_VALUES = 200, 200_000_000  # of a bootstrap: sets, and videos x classes x sets


def average_precision(scores: Tensor, labels: Tensor, positives: float | None = None) -> float | None:
    """Return the average precision of one ranking, or None without positives.

    It is the mean, over the positives, of the precision among the videos with at least their score, as in
    scikit-learn's `average_precision_score`.

    Args:
        scores: [V], of any range.
        labels: bool [V].
        positives: Number of positives, if more exist than those with scores. By default that of `labels`.
    """
    total = float(labels.sum()) if positives is None else positives
    if not total:
        return None
    weights = torch.ones(1, len(scores), dtype=torch.float64)
    return float(_weighted_precision(scores, labels, weights, torch.tensor([total]))[0])


def _weighted_precision(scores: Tensor, labels: Tensor, weights: Tensor, positives: Tensor) -> Tensor:
    """Return the average precision [R] of R sets of videos, which contain each video `weights` [R, V] times."""
    order = scores.argsort(descending=True, stable=True)
    ranked, is_positive = scores[order], labels[order].to(weights.dtype)
    last = torch.ones(len(ranked), dtype=torch.bool)
    last[:-1] = ranked[1:] != ranked[:-1]  # videos of equal score are found together
    counted = weights[:, order]
    hits, shown = (counted * is_positive).cumsum(1)[:, last], counted.cumsum(1)[:, last]
    gained = hits.diff(dim=1, prepend=torch.zeros(len(hits), 1, dtype=hits.dtype))
    return (gained * hits / shown.clamp(min=1)).sum(1) / positives


def several_label_metrics(scores: Tensor, labels: Tensor, has_probabilities: bool = True) -> dict[str, Any]:
    """Return `map`, `map_micro` and `unreadable`, and of probabilities also precision, recall and F1.

    `map` is the mean average precision of the classes with positives, with a 95% bootstrap interval over videos.
    `map_micro` ranks all pairs of video and class together. `precision`, `recall` and `f1` count such pairs with at
    least `THRESHOLD`, and `macro_f1` is the mean of F1 over the classes with positives.

    Args:
        scores: [V, K].
        labels: bool [V, K].
        has_probabilities: False for scores that only rank, which have no threshold.
    """
    if not torch.isfinite(scores).all():
        rows = (~torch.isfinite(scores)).any(dim=1).nonzero()[:5, 0].tolist()
        raise InputError(f"scores with NaN or infinity for videos {rows}: the model gives no usable output")
    readable = answered(scores)
    values = [own for own in class_precisions(scores, labels) if own is not None]
    if not values:
        raise InputError("no video of the evaluation set has a label; mean average precision needs some")
    low, high = _interval(scores, labels)
    figures: dict[str, Any] = {
        "map": {"value": float(np.mean(values)), "low": low, "high": high, "count": len(labels)},
        "map_micro": average_precision(scores[readable].flatten(), labels[readable].flatten(), float(labels.sum())),
        "unreadable": int((~readable).sum()),
    }
    if has_probabilities:
        figures |= _shares(scores >= THRESHOLD, labels)
        figures["macro_f1"] = _macro(class_shares(scores, labels))
    return figures


def class_precisions(scores: Tensor, labels: Tensor) -> list[float | None]:
    """Return the average precision of each class, or None for a class without positives."""
    readable = answered(scores)
    ranked, targets = scores[readable], labels[readable]
    totals = labels.sum(dim=0).tolist()
    return [average_precision(ranked[:, k], targets[:, k], float(total)) for k, total in enumerate(totals)]


def class_shares(scores: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """Return `precision`, `recall` and `f1` at `THRESHOLD`, and the number of `videos`, of each class.

    Precision is None for a class that no video reaches, recall for one without videos, and f1 if neither is known.
    """
    is_answered = scores >= THRESHOLD
    return [
        _shares(is_answered[:, k], labels[:, k]) | {"videos": int(labels[:, k].sum())} for k in range(scores.shape[1])
    ]


def _shares(is_answered: Tensor, labels: Tensor) -> dict[str, float | None]:
    right, answers, videos = (int(each.sum()) for each in (is_answered & labels, is_answered, labels))
    return {
        "precision": right / answers if answers else None,
        "recall": right / videos if videos else None,
        "f1": 2 * right / (answers + videos) if answers + videos else None,
    }


def _macro(classes: list[dict[str, Any]]) -> float:
    return float(np.mean([own["f1"] for own in classes if own["videos"]]))


def _interval(scores: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the 95% percentile interval of the mean average precision over resampled videos. The draws are keyed."""
    count, readable = len(labels), answered(scores)
    sets = max(20, min(_RESAMPLES, _MOST_VALUES // max(labels.numel(), 1)))
    rng = np.random.default_rng(0)
    drawn = torch.from_numpy(rng.multinomial(count, [1 / count] * count, size=sets)).double()
    sums, classes = torch.zeros(sets, dtype=torch.float64), torch.zeros(sets, dtype=torch.float64)
    for own_scores, own_labels in zip(scores.T, labels.T, strict=True):
        if not own_labels.any():
            continue
        positives = drawn @ own_labels.double()
        has_some = positives > 0
        values = _weighted_precision(
            own_scores[readable], own_labels[readable], drawn[:, readable], positives.clamp(min=1)
        )
        sums += torch.where(has_some, values, 0.0)
        classes += has_some
    means = (sums / classes.clamp(min=1))[classes > 0].numpy()
    if not len(means):
        return 0.0, 1.0
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)
