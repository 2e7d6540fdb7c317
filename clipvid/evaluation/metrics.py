"""Metrics of scores, as pure functions of tensors on the CPU.

Shapes: V videos, K classes. Scores are probabilities [V, K], labels int64 [V]. A row of zeros is an unreadable video
and counts as wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor

from clipvid import InputError

MOST_CONFUSED = 1000  # classes


def proportion(hits: int, total: int) -> dict[str, Any]:
    """Return a share with its 95% Wilson score interval: `value`, `low`, `high`, `count`."""
    if total == 0:
        raise InputError("the evaluation set is empty; expected at least one video")
    interval = binomtest(hits, total).proportion_ci(method="wilson")
    return {"value": hits / total, "low": float(interval.low), "high": float(interval.high), "count": total}


def top_k(scores: Tensor, labels: Tensor, k: int) -> dict[str, Any]:
    """Return the share of videos whose label is among the k highest scores (all K if K < k)."""
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices
    hits = (best == labels[:, None]).any(dim=1) & answered(scores)
    return proportion(int(hits.sum()), len(labels))


def answered(scores: Tensor) -> Tensor:
    """Return the rows with scores: bool [V]."""
    return (scores != 0).any(dim=1)


def top1_hits(scores: Tensor, labels: Tensor) -> Tensor:
    """Return which videos have their highest score at their label: bool [V]."""
    return (scores.argmax(dim=1) == labels) & answered(scores)


def classification_metrics(scores: Tensor, labels: Tensor) -> dict[str, Any]:
    """Return top1, top5, mean_class, nll, ece (15 bins), the confusion matrix [K][K] and `unreadable`, a count.

    Unreadable videos count as wrong in the shares, and are excluded from nll, ece and confusion. For more than
    `MOST_CONFUSED` classes, the matrix is omitted, since its size grows with the square of their number.
    """
    if not torch.isfinite(scores).all():
        rows = (~torch.isfinite(scores)).any(dim=1).nonzero()[:5, 0].tolist()
        raise InputError(f"scores with NaN or infinity for videos {rows}: the model gives no usable output")
    classes = scores.shape[1]
    averages, readable = _averages(scores, labels), answered(scores)
    figures = {"top1": top_k(scores, labels, 1), "top5": top_k(scores, labels, 5), **averages}
    scores, labels = scores[readable], labels[readable]
    figures["unreadable"] = int((~readable).sum())
    if classes > MOST_CONFUSED:
        return figures
    confusion = torch.bincount(labels * classes + scores.argmax(dim=1), minlength=classes**2).view(classes, classes)
    return figures | {"confusion": confusion.tolist()}


def _averages(scores: Tensor, labels: Tensor) -> dict[str, float | None]:
    """Return `mean_class`, `nll` and `ece` of `classification_metrics`."""
    shares = [share for share in class_accuracy(scores, labels) if share is not None]
    readable = answered(scores)
    scores, labels = scores[readable], labels[readable]
    confidence, guess = scores.double().max(dim=1)
    counts, sure, right = _calibration(confidence, guess == labels)
    return {
        "mean_class": float(np.mean(shares)),
        "nll": float(-scores.gather(1, labels[:, None]).clamp(min=1e-12).log().mean()) if len(scores) else None,
        "ece": float((counts * (sure - right).abs()).sum() / len(scores)) if len(scores) else None,
    }


def bootstrap_intervals(scores: Tensor, labels: Tensor, resamples: int = 1000) -> dict[str, tuple[float, float]]:
    """Return 95% percentile intervals of `mean_class`, `nll` and `ece` over resampled videos.

    The draws are keyed: the same scores have the same intervals. Empty if fewer than two videos could be read.
    """
    readable = answered(scores)
    if int(readable.sum()) < 2:
        return {}
    confidence, guess = scores.double().max(dim=1)
    right = (guess == labels) & readable
    losses = -scores.double().gather(1, labels[:, None])[:, 0].clamp(min=1e-12).log()

    columns = _Columns(
        labels.numpy(), readable.numpy(), right.numpy(), losses.numpy(), confidence.numpy(), _bins(confidence).numpy()
    )
    rng, many = np.random.default_rng(0), max(1, 1_000_000 // max(len(labels), scores.shape[1]))
    drawn = np.concatenate(
        [
            _resampled_figures(columns, rng.integers(len(labels), size=(min(many, resamples - start), len(labels))))
            for start in range(0, resamples, many)
        ]
    )
    low, high = np.nanpercentile(drawn, (2.5, 97.5), axis=0)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(("mean_class", "nll", "ece"))}


class _Columns(NamedTuple):
    """Values of each video [V] that resampled figures depend on."""

    labels: np.ndarray
    readable: np.ndarray
    right: np.ndarray
    losses: np.ndarray
    confidence: np.ndarray
    bins: np.ndarray


def _resampled_figures(columns: _Columns, drawn: np.ndarray) -> np.ndarray:
    """Return mean_class, nll and ece [R, 3] of R resamples, given rows of videos [R, V]."""

    def totals(groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return sums [R, G] of weights [V] by group [V]."""
        size = int(groups.max()) + 1
        places = groups[drawn] + size * np.arange(len(drawn))[:, None]
        return np.bincount(places.ravel(), weights[drawn].ravel(), size * len(drawn)).reshape(len(drawn), size)

    readable = columns.readable
    counts, hits = totals(columns.labels, np.ones(len(readable))), totals(columns.labels, columns.right)
    read = readable[drawn].sum(axis=1)
    sure = totals(columns.bins, np.where(readable, columns.confidence, 0.0))
    gaps = np.abs(sure - totals(columns.bins, columns.right & readable)).sum(axis=1)
    losses = np.where(readable, columns.losses, 0.0)[drawn].sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample may have unreadable videos only
        return np.stack([np.nanmean(hits / counts, axis=1), losses / read, gaps / read], axis=1)


def calibration_curve(scores: Tensor, labels: Tensor) -> dict[str, list[float]]:
    """Return `count`, mean `confidence` and `accuracy` of the videos in each of 15 equal bins of the highest score.

    Empty bins and unreadable videos are omitted.
    """
    readable = answered(scores)
    confidence, guess = scores[readable].double().max(dim=1)
    columns = _calibration(confidence, guess == labels[readable])
    return dict(zip(("count", "confidence", "accuracy"), (column.tolist() for column in columns), strict=True))


def _calibration(confidence: Tensor, right: Tensor, bins: int = 15) -> tuple[Tensor, Tensor, Tensor]:
    """Return count, mean confidence and accuracy of each nonempty bin, from float64 [V] and bool [V]."""
    place = _bins(confidence, bins)
    counts = place.bincount()
    filled = counts > 0
    counted = counts[filled]
    return counted, place.bincount(confidence)[filled] / counted, place.bincount(right.double())[filled] / counted


def _bins(confidence: Tensor, bins: int = 15) -> Tensor:
    """Return the bin of each confidence, as int64 of the same shape."""
    return (confidence * bins).ceil().long().clamp(1, bins) - 1


def class_accuracy(scores: Tensor, labels: Tensor) -> list[float | None]:
    """Return the accuracy of each class, or None for a class without videos."""
    counts = labels.bincount(minlength=scores.shape[1])
    hits = labels.bincount(top1_hits(scores, labels).double(), scores.shape[1])
    return [hit / count if count else None for hit, count in zip(hits.tolist(), counts.tolist(), strict=True)]


def class_figures(scores: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """Return `precision`, `recall`, `f1` and the number of `videos` of each class.

    Precision is None for a class that is never answered, recall for one without videos, and f1 if neither is known.
    """
    answers = torch.where(answered(scores), scores.argmax(dim=1), -1)
    figures = []
    for number in range(scores.shape[1]):
        videos, answered_as = int((labels == number).sum()), int((answers == number).sum())
        right = int(((labels == number) & (answers == number)).sum())
        precision, recall = (right / total if total else None for total in (answered_as, videos))
        f1 = 2 * right / (videos + answered_as) if videos + answered_as else None
        figures.append({"precision": precision, "recall": recall, "f1": f1, "videos": videos})
    return figures


def harmonic_mean(first: float, second: float) -> float:
    """Return the harmonic mean of two shares, 0 if one of them is 0."""
    return 2 * first * second / (first + second) if first and second else 0.0


def mean_and_spread(values: Sequence[float]) -> dict[str, Any]:
    """Return `mean`, `std` (of the sample, over n - 1; None for one value) and the `values`."""
    sample = torch.tensor(values, dtype=torch.float64)
    return {
        "mean": float(sample.mean()),
        "std": float(sample.std()) if len(values) > 1 else None,
        "values": list(values),
    }


def pair_accuracy(scores: Tensor, labels: Tensor, partners: Sequence[int]) -> dict[str, Any]:
    """Return the share of videos that score their class above its partner (-1: no partner, omitted). Chance is 0.5."""
    paired, hits = pair_hits(scores, labels, partners)
    return proportion(int(hits[paired].sum()), int(paired.sum()))


def pair_hits(scores: Tensor, labels: Tensor, partners: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return which videos have a class with a partner, and which score their class above it: bool [V] each."""
    other = torch.tensor(partners)[labels]
    rows = torch.arange(len(labels))
    return other >= 0, scores[rows, labels] > scores[rows, other.clamp(min=0)]


def attribute_accuracy(scores: Tensor, labels: Tensor, attribute: Sequence[str]) -> dict[str, Any]:
    """Return the share of videos whose attribute (one per class, such as the object) gets the highest total score."""
    values = sorted(set(attribute))
    place = {value: index for index, value in enumerate(values)}
    membership = torch.tensor([place[value] for value in attribute])
    totals = torch.zeros(len(scores), len(values)).index_add_(1, membership, scores.float())
    hits = (totals.argmax(dim=1) == membership[labels]) & answered(scores)
    return proportion(int(hits.sum()), len(labels))
