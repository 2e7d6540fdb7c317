"""Results of a ladder's rows over seeds, and outcomes of hypotheses.

Shapes: S seeds, V videos, C clusters of videos, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
from scipy.stats import norm, t
from torch import Tensor

from clipvid.data.manifest import ClassInfo
from clipvid.evaluation.metrics import mean_and_spread, pair_hits, top1_hits

TOP1, PAIRS, FORWARD = "top1", "pairs", "forward"


@dataclass(frozen=True)
class Hypothesis:
    """Expected result of a row, recorded before it is measured.

    Attributes:
        row: Name of the row.
        why: Reason to expect the result.
        over: Second row, or None. With it, the hypothesis is about the difference of their accuracies.
        measure: `top1`, `pairs` (a motion against its reverse), or the name of one of the pairs.
        under: `forward`, or a control (`reversed`, `shuffled`, `single`), for both rows.
        at_least: Lower bound of the figure, or None.
        at_most: Upper bound of the figure, or None. A hypothesis without bounds is not judged.
    """

    row: str
    why: str
    over: str | None = None
    measure: str = TOP1
    under: str = FORWARD
    at_least: float | None = None
    at_most: float | None = None

    def __str__(self) -> str:
        what = f"{self.row} − {self.over}" if self.over else self.row
        where = self.measure + (f", {self.under}" if self.under != FORWARD else "")
        bounds = (("≥", self.at_least), ("≤", self.at_most))
        limits = " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)
        return f"{what} on {where} {limits}".rstrip()

    def judge(self, value: float) -> bool | None:
        """Return True if `value` is as expected, or None without bounds."""
        if self.at_least is None and self.at_most is None:
            return None
        low = -math.inf if self.at_least is None else self.at_least
        return low <= value <= (math.inf if self.at_most is None else self.at_most)


class Hits(NamedTuple):
    """Correct predictions of one evaluation.

    Attributes:
        right: [V], 0 or 1, by condition and measure.
        names: Names of the videos (sorted), by measure.
    """

    right: dict[tuple[str, str], np.ndarray]
    names: dict[str, list[str]]


def read_hits(predictions: Path, classes: Sequence[ClassInfo]) -> Hits:
    """Read the correct predictions in a `predictions.parquet`; see `measures_of`."""
    table = pq.read_table(predictions, columns=["condition", "path", "label", "scores"])
    right, names = {}, {}
    for condition in table["condition"].unique().to_pylist():
        own = table.filter(np.asarray(table["condition"]) == condition).sort_by([("path", "ascending")])
        scores, labels = torch.tensor(own["scores"].to_pylist()), torch.tensor(own["label"].to_pylist())
        for measure, (asked, hits) in measures(scores, labels, classes).items():
            right[condition, measure] = hits[asked].double().numpy()
            names[measure] = [path for path, kept in zip(own["path"].to_pylist(), asked.tolist(), strict=True) if kept]
    return Hits(right, names)


def measures_of(classes: Sequence[ClassInfo]) -> list[str]:
    """Return `top1` and, if classes have `partner` and `pair`, `pairs` and the name of each pair."""
    attributes = [info.attributes for info in classes]
    if not all({"partner", "pair"} <= own.keys() for own in attributes):
        return [TOP1]
    pairs = sorted({own["pair"] for own in attributes if int(own["partner"]) >= 0})
    return [TOP1, PAIRS, *pairs] if pairs else [TOP1]


def measures(scores: Tensor, labels: Tensor, classes: Sequence[ClassInfo]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return by measure the included videos and the correct ones, two tensors bool [V], for scores [V, K]."""
    results = {TOP1: (torch.ones(len(labels), dtype=torch.bool), top1_hits(scores, labels))}
    pairs = measures_of(classes)[2:]
    if pairs:
        paired, hits = pair_hits(scores, labels, [int(info.attributes["partner"]) for info in classes])
        results[PAIRS] = (paired, hits)
        shown = [classes[label].attributes["pair"] for label in labels.tolist()]
        results |= {pair: (paired & torch.tensor([own == pair for own in shown]), hits) for pair in pairs}
    return {measure: (asked, right) for measure, (asked, right) in results.items() if asked.any()}


class Results:
    """Results of the rows by seed.

    Args:
        classes: Classes of the evaluation.
        clusters: Path of a video -> its source, such as a person.
    """

    def __init__(self, classes: Sequence[ClassInfo], clusters: dict[str, str]) -> None:
        self.classes, self.clusters = classes, clusters
        self.hits: dict[str, dict[int, Hits]] = {}

    def add(self, row: str, seed: int, predictions: Path) -> None:
        """Add a finished trial by its `predictions.parquet`."""
        self.hits.setdefault(row, {})[seed] = read_hits(predictions, self.classes)

    def figures(self, row: str) -> dict[str, Any]:
        """Return the available `seeds`, and `figures`: `accuracy_over_seeds` by condition and measure."""
        hits = self.hits.get(row, {})
        figures: dict[str, dict[str, Any]] = {}
        for condition, measure in next(iter(hits.values())).right if hits else []:
            right, clusters = self._stacked(list(hits.values()), condition, measure)
            figures.setdefault(condition, {})[measure] = accuracy_over_seeds(right, clusters)
        return {"seeds": sorted(hits), "figures": figures}

    def differences(self, row: str, over: str) -> dict[str, Any]:
        """Return by measure the difference of two rows over their common seeds (`difference_over_seeds`)."""
        common = self.hits.get(row, {}).keys() & self.hits.get(over, {}).keys()
        if not common or row == over:
            return {}
        shared = [measure for condition, measure in self.hits[row][min(common)].right if condition == FORWARD]
        return {each: self.outcome(Hypothesis(row, "", over, each))["found"] for each in shared}

    def outcome(self, hypothesis: Hypothesis) -> dict[str, Any]:
        """Return `found`, the figure of a hypothesis over common seeds of its rows, and `held`. Both may be None."""
        rows = [self.hits.get(row, {}) for row in (hypothesis.row, hypothesis.over) if row is not None]
        seeds = sorted(set.intersection(*(set(row) for row in rows)))
        if not seeds:
            return {"found": None, "held": None}
        stacks = [self._stacked([row[seed] for seed in seeds], hypothesis.under, hypothesis.measure) for row in rows]
        right, clusters = stacks[0]
        single = len(stacks) == 1
        figure = (
            accuracy_over_seeds(right, clusters) if single else difference_over_seeds(right, stacks[1][0], clusters)
        )
        return {"found": figure, "held": hypothesis.judge(figure["mean"])}

    def _stacked(self, hits: list[Hits], condition: str, measure: str) -> tuple[np.ndarray, list[str]]:
        right = np.stack([each.right[condition, measure] for each in hits])
        return right, [self.clusters[name] for name in hits[0].names[measure]]


def same_answers(first: Path, second: Path) -> bool:
    """Return True if two `predictions.parquet` have bitwise equal logits for the same videos."""
    columns = ["group", "condition", "path", "label", "readable", "view_logits"]
    return pq.read_table(first, columns=columns).equals(pq.read_table(second, columns=columns))


def accuracy_over_seeds(right: np.ndarray, clusters: Sequence[str]) -> dict[str, Any]:
    """Return `mean`, `std` and `values` over seeds (`mean_and_spread`), and a 95% interval of the mean.

    The interval, `low` to `high`, covers the variation of both seeds and videos. It is Wilson's interval at Kish's
    effective sample size, where a simple proportion has the variance of `mean_variance` (at most V). Student's t
    replaces the normal quantile (Dean and Pagano, https://doi.org/10.1093/jssam/smv024).

    Args:
        right: [S, V] of 0 and 1.
        clusters: [V], sources (a person, a recording) whose videos are not independent.
    """
    summary = mean_and_spread(right.mean(axis=1).tolist())
    share, count = summary["mean"], right.shape[1]
    variance, quantile = mean_variance(right, clusters)
    size = min(count, share * (1 - share) / variance) if variance > 0 and 0 < share < 1 else count
    squared = quantile**2 / size
    centre = (share + squared / 2) / (1 + squared)
    half = quantile / (1 + squared) * math.sqrt(share * (1 - share) / size + squared / (4 * size))
    return summary | {
        "low": max(0.0, min(share, centre - half)),
        "high": min(1.0, max(share, centre + half)),
        "count": count,
    }


def difference_over_seeds(right: np.ndarray, over: np.ndarray, clusters: Sequence[str]) -> dict[str, Any]:
    """Return the difference of two rows on the same seeds and videos, [S, V] each, with a t interval.

    The keys are those of `accuracy_over_seeds`.
    """
    summary = mean_and_spread((right - over).mean(axis=1).tolist())
    variance, quantile = mean_variance(right - over, clusters)
    half = quantile * math.sqrt(variance)
    return summary | {"low": summary["mean"] - half, "high": summary["mean"] + half, "count": right.shape[1]}


def mean_variance(values: np.ndarray, clusters: Sequence[str]) -> tuple[float, float]:
    """Return the variance of the mean of values [S, V] over seeds and clusters of videos, and the quantile for 95%.

    The model is a two-way analysis of variance without replicates, seeds x clusters, both random. A negative component
    counts as zero and is excluded from the degrees of freedom, which follow Satterthwaite. With one seed, only the
    variance over videos is known.
    """
    names, place = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.stack([np.bincount(place, row, len(names)) for row in values])
    cells = sums * len(names) / values.shape[1]  # so that their mean equals that of the values
    seeds, count = cells.shape
    rows, columns, mean = cells.mean(axis=1), cells.mean(axis=0), cells.mean()
    rest = cells - rows[:, None] - columns + mean
    freedom = np.array([seeds - 1, count - 1, (seeds - 1) * (count - 1)])
    squares = np.array([count * ((rows - mean) ** 2).sum(), seeds * ((columns - mean) ** 2).sum(), (rest**2).sum()])
    between_seeds, between_clusters, noise = squares / np.maximum(freedom, 1)
    kept = [between_seeds > noise, between_clusters > noise]
    parts = np.array([kept[0] * between_seeds, kept[1] * between_clusters, (1 - sum(kept)) * noise])
    total = float(parts.sum())
    if total < 1e-12:
        return 0.0, float(norm.ppf(0.975))
    degrees = total**2 / float((parts[freedom > 0] ** 2 / freedom[freedom > 0]).sum())
    return total / cells.size, float(t.ppf(0.975, degrees))
