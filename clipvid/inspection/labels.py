"""Labels that are likely wrong, and classes that a probe cannot separate, from out-of-fold probabilities.

As in confident learning (Northcutt et al., https://arxiv.org/abs/1911.00068), probabilities are compared with their
means by class. A label is suspicious if another class is far more probable than for other clips with that label, and
the label far less probable. Classes that are often confused therefore do not come first.

Shapes: N clips, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_INSEPARABLE = 0.35  # share of wrong answers between two classes; chance is 0.5
_LEAST = 4  # clips of a pair of classes
_STRONG = 5.0  # evidence, a ratio of probabilities of 150
_RARE, _LOWEST = 0.02, 1e-4  # a mean probability, and a share of one


@dataclass(frozen=True)
class Suspect:
    """A clip whose label is likely wrong.

    Attributes:
        place: Position of the clip.
        label: Its class.
        suggested: The most probable other class.
        margin: Probability of the suggested class minus that of the label, -1 to 1.
        evidence: Sum of two logarithms. One says how much more probable the suggested class is than for other clips
            with the label. The other says how much less probable the label is.
        is_flagged: True if the suggested class is more probable than the label, and the evidence is strong.
    """

    place: int
    label: int
    suggested: int
    margin: float
    evidence: float
    is_flagged: bool


@dataclass(frozen=True)
class ConfusedPair:
    """Two classes that a probe cannot tell apart.

    Attributes:
        first: A class.
        second: Another class.
        accuracy: Share of their clips that score their class above the other one.
        count: Number of their clips.
    """

    first: int
    second: int
    accuracy: float
    count: int


def rank_labels(probabilities: Tensor, labels: Tensor) -> list[Suspect]:
    """Return all clips, the most suspicious label first.

    Args:
        probabilities: Out-of-fold probabilities [N, K].
        labels: int64 [N].
    """
    rows = torch.arange(len(labels))
    own = probabilities[rows, labels]
    others = probabilities.clone()
    others[rows, labels] = -1.0
    best, suggested = others.max(dim=1)
    margins = best - own
    classes = probabilities.shape[1]
    sums = torch.zeros(classes, classes).index_add_(0, labels, probabilities.float())
    others_of_class = (labels.bincount(minlength=classes)[labels] - 1).clamp_min(1)
    more = best / ((sums[labels, suggested] - best) / others_of_class).clamp_min(_RARE)
    less = own / ((sums[labels, labels] - own) / others_of_class).clamp_min(_RARE)
    evidence = more.log() - less.clamp_min(_LOWEST).log()
    flagged = (margins > 0) & (evidence > _STRONG)
    order = evidence.argsort(descending=True, stable=True)
    return [
        Suspect(
            place,
            int(labels[place]),
            int(suggested[place]),
            float(margins[place]),
            float(evidence[place]),
            bool(flagged[place]),
        )
        for place in order.tolist()
    ]


def inseparable_pairs(scores: Tensor, labels: Tensor) -> list[ConfusedPair]:
    """Return the pairs of classes that are separated little better than by chance, the worst first.

    Args:
        scores: Out-of-fold scores or probabilities [N, K].
        labels: int64 [N].
    """
    right, counts = pairwise_hits(scores, labels)
    total = counts[:, None] + counts[None]
    accuracy = (right + right.T) / total.clamp_min(1)
    first, second = torch.triu_indices(len(counts), len(counts), 1)
    pairs = [
        ConfusedPair(a, b, float(accuracy[a, b]), int(total[a, b]))
        for a, b in zip(first.tolist(), second.tolist(), strict=True)
        if counts[a] and counts[b] and total[a, b] >= _LEAST and accuracy[a, b] <= 1 - _INSEPARABLE
    ]
    return sorted(pairs, key=lambda pair: (pair.accuracy, pair.first, pair.second))


def pairwise_hits(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number of clips of each class that score it above each other class [K, K], and its clips [K]."""
    classes = scores.shape[1]
    own = scores.gather(1, labels[:, None])
    above = (own > scores).float() + 0.5 * (own == scores).float()
    return torch.zeros(classes, classes).index_add_(0, labels, above), labels.bincount(minlength=classes).float()
