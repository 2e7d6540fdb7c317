"""Figures of merit from scores: pure functions over tensors on the CPU.

Shapes: V videos, K classes. Scores are probabilities [V, K], labels int64 [V]. A row of zeros is a video that could
not be read: it counts as wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error


def proportion(hits: int, total: int) -> dict[str, Any]:
    """A share with its 95% Wilson score interval: `value`, `low`, `high`, `count`."""
    if total == 0:
        raise ValueError("no videos to take a share of: the evaluation set is empty")
    interval = binomtest(hits, total).proportion_ci(method="wilson")
    return {"value": hits / total, "low": float(interval.low), "high": float(interval.high), "count": total}


def top_k(scores: Tensor, labels: Tensor, k: int) -> dict[str, Any]:
    """Share of videos whose label is among the k highest scores (all K where K < k)."""
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices
    hits = (best == labels[:, None]).any(dim=1) & answered(scores)
    return proportion(int(hits.sum()), len(labels))


def answered(scores: Tensor) -> Tensor:
    """Which rows hold an answer at all: bool [V]."""
    return (scores != 0).any(dim=1)


def classification_metrics(scores: Tensor, labels: Tensor) -> dict[str, Any]:
    """top1, top5 and mean_class with intervals or values, nll, ece (15 bins), the confusion matrix [K][K] and the
    number of unreadable videos. These count as wrong in the shares, and have no part in nll, ece and confusion."""
    if not torch.isfinite(scores).all():
        rows = (~torch.isfinite(scores)).any(dim=1).nonzero()[:5, 0].tolist()
        raise ValueError(f"scores with NaN or infinity for videos {rows}: the model gives no usable output")
    classes = scores.shape[1]
    counts = labels.bincount(minlength=classes)
    figures = {"top1": top_k(scores, labels, 1), "top5": top_k(scores, labels, 5)}
    given = answered(scores)
    scores, labels = scores[given], labels[given]
    confusion = torch.bincount(labels * classes + scores.argmax(dim=1), minlength=classes**2).view(classes, classes)
    recalls = confusion.diagonal()[counts > 0] / counts[counts > 0]
    calibrated = len(scores) > 0 and classes > 1
    return figures | {
        "mean_class": float(recalls.mean()),
        "nll": float(-scores.gather(1, labels[:, None]).clamp(min=1e-12).log().mean()) if len(scores) else None,
        "ece": float(multiclass_calibration_error(scores, labels, classes, n_bins=15)) if calibrated else 0.0,
        "confusion": confusion.tolist(),
        "unreadable": int((~given).sum()),
    }


def pair_accuracy(scores: Tensor, labels: Tensor, partners: Sequence[int]) -> dict[str, Any]:
    """Share of videos that score their class above its partner (-1: no partner, left out). Chance is one half."""
    other = torch.tensor(partners)[labels]
    paired = other >= 0
    rows = torch.arange(len(labels))[paired]
    hits = scores[rows, labels[paired]] > scores[rows, other[paired]]
    return proportion(int(hits.sum()), len(rows))


def attribute_accuracy(scores: Tensor, labels: Tensor, attribute: Sequence[str]) -> dict[str, Any]:
    """Share of videos whose attribute (one value per class, such as the object) gets the highest total score."""
    values = sorted(set(attribute))
    membership = torch.tensor([values.index(value) for value in attribute])
    totals = torch.zeros(len(scores), len(values)).index_add_(1, membership, scores.float())
    hits = (totals.argmax(dim=1) == membership[labels]) & answered(scores)
    return proportion(int(hits.sum()), len(labels))
