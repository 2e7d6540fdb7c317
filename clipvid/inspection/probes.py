"""Linear probes of frozen features by ridge regression, with cross-validation by group.

Shapes: N clips, T frames, E embedding, R components, D inputs of a probe, K classes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clipvid.data.sampling import keyed_generator

COMPONENTS = 128  # of the frame features that probes see
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # as shares of the mean variance of an input


@dataclass(frozen=True)
class ProbeScores:
    """Out-of-fold scores of a probe.

    Attributes:
        scores: float32 [N, K], of each clip by a probe that has seen neither it nor its group.
        others: The same probes on other inputs, by name.
        penalty: The penalty that inner folds chose most often.
    """

    scores: Tensor
    others: dict[str, Tensor]
    penalty: float


@dataclass(frozen=True)
class Probe:
    """Linear map of inputs to scores, `(inputs - mean) @ weights + center`.

    Attributes:
        mean: float32 [D].
        weights: float32 [D, K].
        center: float32 [K].
    """

    mean: Tensor
    weights: Tensor
    center: Tensor

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return scores [M, K] of inputs [M, D]."""
        return (inputs - self.mean) @ self.weights + self.center


def reduce_features(features: Tensor, components: int = COMPONENTS) -> Tensor:
    """Return the principal components of frame features [N, T, E] over all frames, float32 [N, T, R].

    No labels are used, so held-out clips may take part.
    """
    flat = features.flatten(0, 1).float()
    flat = torch.nn.functional.normalize(flat, dim=-1)
    flat = flat - flat.mean(dim=0)
    if flat.shape[1] > components:
        _, vectors = torch.linalg.eigh(flat.T @ flat)
        flat = flat @ vectors[:, -components:].flip(1)
    return flat.unflatten(0, features.shape[:2])


def spread_folds(labels: Sequence[int], groups: Sequence[int], folds: int, seed: int) -> list[int]:
    """Return the fold of each clip. Groups stay whole, and each class is spread over the folds as evenly as they allow.

    Args:
        labels: Class of each clip.
        groups: Group of each clip.
        folds: Number of folds.
        seed: Seed of the order of groups of equal size.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    order = torch.randperm(len(members), generator=keyed_generator(seed)).tolist()
    names = [list(members)[place] for place in order]
    names.sort(key=lambda group: -len(members[group]))
    held: list[dict[int, int]] = [defaultdict(int) for _ in range(folds)]
    sizes = [0] * folds
    result = [0] * len(labels)
    for group in names:
        own = [labels[index] for index in members[group]]
        fold = min(range(folds), key=lambda place: (sum(held[place][label] for label in own), sizes[place]))
        for index in members[group]:
            result[index] = fold
            held[fold][labels[index]] += 1
        sizes[fold] += len(own)
    return result


def cross_validate(
    inputs: Tensor,
    labels: Tensor,
    folds: Tensor,
    classes: int,
    others: dict[str, Tensor] | None = None,
    chosen: Tensor | None = None,
    penalty: float | None = None,
) -> ProbeScores:
    """Return out-of-fold scores of ridge regression onto one-hot labels.

    The penalty of each fold is chosen on its training clips alone, by holding out each of the other folds in turn.

    Args:
        inputs: float32 [N, D].
        labels: int64 [N].
        folds: int64 [N].
        classes: K.
        others: Further inputs [N, D] that the probes are applied to, by name.
        chosen: bool [N], clips that may be used for training; by default all.
        penalty: Penalty of all folds; by default it is chosen.
    """
    others = others or {}
    targets = torch.nn.functional.one_hot(labels, classes).float()
    scores = torch.zeros(len(labels), classes)
    further = {name: torch.zeros(len(labels), classes) for name in others}
    votes: list[float] = []
    numbers = folds.unique().tolist()
    for fold in numbers:
        is_test = folds == fold
        is_train = ~is_test if chosen is None else ~is_test & chosen
        own = _choose_penalty(inputs, targets, labels, folds, is_train) if penalty is None else penalty
        votes.append(own)
        probe = _fit(inputs[is_train], targets[is_train], [own])[0]
        scores[is_test] = probe(inputs[is_test])
        for name, values in others.items():
            further[name][is_test] = probe(values[is_test])
    return ProbeScores(scores, further, max(sorted(set(votes)), key=votes.count))


def fit_probe(inputs: Tensor, labels: Tensor, classes: int, penalty: float) -> Probe:
    """Return the ridge regression of inputs [N, D] onto one-hot labels [N] of K classes. Classes may have no clips.

    Args:
        inputs: float32 [N, D].
        labels: int64 [N].
        classes: K.
        penalty: One of `PENALTIES`, or another positive number.
    """
    return _fit(inputs, torch.nn.functional.one_hot(labels, classes).float(), [penalty])[0]


def probabilities(scores: Tensor, labels: Tensor) -> Tensor:
    """Return scores [N, K] as probabilities, by the temperature under which the labels are most likely."""
    return (scores / best_temperature(scores, labels)).softmax(dim=1)


def best_temperature(scores: Tensor, labels: Tensor) -> float:
    """Return the temperature, 0.01 to 100, under which the labels [N] are most likely given scores [N, K]."""
    steps = torch.logspace(-2, 2, 41)
    losses = [float(torch.nn.functional.cross_entropy(scores / step, labels)) for step in steps]
    return float(steps[losses.index(min(losses))])


def _choose_penalty(inputs: Tensor, targets: Tensor, labels: Tensor, folds: Tensor, is_train: Tensor) -> float:
    hits = torch.zeros(len(PENALTIES))
    for inner in folds[is_train].unique().tolist():
        is_held = is_train & (folds == inner)
        is_rest = is_train & (folds != inner)
        if not is_rest.any():
            continue
        probes = _fit(inputs[is_rest], targets[is_rest], PENALTIES)
        answers = torch.stack([probe(inputs[is_held]).argmax(dim=1) for probe in probes])
        hits += (answers == labels[is_held]).float().sum(dim=1)
    return PENALTIES[int(hits.argmax())]


def _fit(inputs: Tensor, targets: Tensor, penalties: Sequence[float]) -> list[Probe]:
    """Return a probe for each penalty.

    The normal equations are solved in the smaller of the two dimensions. A penalty makes them positive definite, and
    five Cholesky decompositions take far less time than one of eigenvectors.
    """
    mean, center = inputs.mean(dim=0), targets.mean(dim=0)
    x, y = (inputs - mean).double(), (targets - center).double()
    is_wide = x.shape[1] > x.shape[0]
    gram, right = (x @ x.T, y) if is_wide else (x.T @ x, x.T @ y)
    unit = max(float(x.square().sum()) / x.shape[1], 1e-12)
    probes = []
    for penalty in penalties:
        shifted = gram.clone()
        shifted.diagonal().add_(penalty * unit)
        solution = torch.cholesky_solve(right, torch.linalg.cholesky(shifted))
        probes.append(Probe(mean, (x.T @ solution if is_wide else solution).float(), center))
    return probes
