"""Training of a linear head on stored video features, and its comparison with other models on the same clips.

Shapes: N clips, E embedding, K classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.stats import binomtest
from torch import Tensor

from clipvid import InputError
from clipvid.evaluation.metrics import proportion
from clipvid.inspection.probes import best_temperature, cross_validate, fit_probe, spread_folds
from clipvid.model.linear_head import linear_head_inputs

FOLDS = 5
_QUICK_PENALTY, _QUICK_TEMPERATURE = 0.1, 0.2  # of a classifier that only orders clips
_LEAST_TEMPERATURE = 0.1  # a few clips that are all right do not make a head certain
_SIGNIFICANT = 0.05


@dataclass(frozen=True)
class TrainedHead:
    """Linear head with its answers for clips that it did not see.

    Attributes:
        labels: K class names.
        weight: float32 [K, E], for inputs of `linear_head_inputs`.
        bias: float32 [K].
        guesses: Class name of each training clip, by a head of cross-validation that has not seen it.
        held_out: Probabilities [N, K] of the training clips by the heads of cross-validation.
    """

    labels: list[str]
    weight: Tensor
    bias: Tensor
    guesses: list[str]
    held_out: Tensor

    def answers(self, features: Tensor) -> list[str]:
        """Return the class name of each clip by its features [M, E]."""
        scores = linear_head_inputs(features) @ self.weight.T + self.bias
        return [self.labels[place] for place in scores.argmax(dim=1).tolist()]


@dataclass(frozen=True)
class Accuracy:
    """Share of clips that a model is right about, with its 95% Wilson interval.

    Attributes:
        value: Share.
        low: Lower end.
        high: Upper end.
        hits: Number of clips that it is right about.
        count: Number of clips.
    """

    value: float
    low: float
    high: float
    hits: int
    count: int

    @classmethod
    def of(cls, guesses: Sequence[str], labels: Sequence[str]) -> Accuracy:
        """Return the share of guesses that equal the labels.

        Raises:
            InputError: There are no clips.
        """
        hits = sum(guess == label for guess, label in zip(guesses, labels, strict=True))
        share = proportion(hits, len(labels))
        return cls(share["value"], share["low"], share["high"], hits, len(labels))


@dataclass(frozen=True)
class Comparison:
    """A new head against another model on the same clips.

    Attributes:
        new: Accuracy of the new head.
        other: Accuracy of the other model.
        won: Clips that only the new head is right about.
        lost: Clips that only the other model is right about.
    """

    new: Accuracy
    other: Accuracy
    won: int
    lost: int

    @classmethod
    def of(cls, new: Sequence[str], other: Sequence[str], labels: Sequence[str]) -> Comparison:
        """Compare the guesses of two models.

        Raises:
            InputError: There are no clips.
        """
        pairs = [(a == label, b == label) for a, b, label in zip(new, other, labels, strict=True)]
        return cls(
            Accuracy.of(new, labels), Accuracy.of(other, labels), pairs.count((True, False)), pairs.count((False, True))
        )

    @property
    def is_better(self) -> bool:
        """True if the new head is right about more clips."""
        return self.won > self.lost

    @property
    def may_be_chance(self) -> bool:
        """True if an exact sign test does not exclude that both models are equally good (p of 0.05 or more)."""
        decided = self.won + self.lost
        return not decided or bool(binomtest(self.won, decided, alternative="greater").pvalue >= _SIGNIFICANT)


def train_head(features: Tensor, labels: Sequence[str], names: Sequence[str], seed: int = 0) -> TrainedHead:
    """Train a linear head by ridge regression, and ask heads of a 5-fold cross-validation about their held-out clips.

    Args:
        features: Video features [N, E].
        labels: Class name of each clip.
        names: Order of the classes. Classes without clips are left out.
        seed: Seed of the folds.

    Raises:
        InputError: There are fewer than two classes of two clips.
    """
    counts = Counter(labels)
    if sum(count > 1 for count in counts.values()) < 2:
        raise InputError(f"{len(labels)} clips of {len(counts)} classes are labeled; label two clips of two classes")
    classes = [name for name in names if counts[name]]
    places = torch.tensor([classes.index(label) for label in labels])
    inputs = linear_head_inputs(features)
    folds = torch.tensor(spread_folds(places.tolist(), range(len(places)), min(FOLDS, len(places)), seed))
    result = cross_validate(inputs, places, folds, len(classes))
    temperature = max(best_temperature(result.scores, places), _LEAST_TEMPERATURE)
    probe = fit_probe(inputs, places, len(classes), result.penalty)
    return TrainedHead(
        classes,
        probe.weights.T / temperature,
        (probe.center - probe.mean @ probe.weights) / temperature,
        [classes[place] for place in result.scores.argmax(dim=1).tolist()],
        (result.scores / temperature).softmax(dim=1),
    )


def quick_probabilities(features: Tensor, places: Tensor, labels: Sequence[str]) -> tuple[list[str], Tensor] | None:
    """Return class names and probabilities [N, K] of all clips by a head that is trained in milliseconds.

    Args:
        features: Video features [N, E].
        places: Numbers of the labeled clips.
        labels: Their class names. With fewer than two classes, the result is None.
    """
    classes = list(dict.fromkeys(labels))
    if len(classes) < 2:
        return None
    inputs = linear_head_inputs(features)
    targets = torch.tensor([classes.index(label) for label in labels])
    probe = fit_probe(inputs[places], targets, len(classes), _QUICK_PENALTY)
    return classes, (probe(inputs) / _QUICK_TEMPERATURE).softmax(dim=1)
