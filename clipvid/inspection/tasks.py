"""Labeled clips that probes can use, with folds and out-of-fold scores.

Shapes: N clips, T frames, R components, D inputs of a probe, K classes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from clipvid.inspection.clips import ClipList
from clipvid.inspection.duplicates import Duplicate, clusters
from clipvid.inspection.features import Readings
from clipvid.inspection.probes import ProbeScores, cross_validate, reduce_features, spread_folds
from clipvid.inspection.time import REVERSED, SHUFFLED, other_order, over_time


@dataclass(frozen=True)
class ProbeTask:
    """Labeled, readable clips with folds, as tensors.

    Attributes:
        places: Number of each clip.
        features: Principal components of frame features [N, T, R].
        labels: int64 [N].
        folds: int64 [N].
        groups: Number of the group of each clip, int64 [N].
        classes: K.
        unit: `group` or `clip`.
        seed: Seed of the folds.
    """

    places: list[int]
    features: Tensor
    labels: Tensor
    folds: Tensor
    groups: Tensor
    classes: int
    unit: str
    seed: int = 0

    @cached_property
    def scores(self) -> dict[str, ProbeScores]:
        """Out-of-fold scores of the probes of `over_time` by name, also on reversed and on shuffled clips."""
        turned = {name: over_time(other_order(self.features, name)) for name in (REVERSED, SHUFFLED)}
        return {
            name: self.probe(inputs, {order: own[name] for order, own in turned.items()})
            for name, inputs in over_time(self.features).items()
        }

    def probe(
        self, inputs: Tensor, others: dict[str, Tensor] | None = None, chosen: Tensor | None = None
    ) -> ProbeScores:
        """Return out-of-fold scores of a probe of inputs [N, D], see `cross_validate`.

        Args:
            inputs: Inputs of the probe.
            others: Further inputs by name.
            chosen: bool [N], clips that may be used for training; by default all.
        """
        return cross_validate(inputs, self.labels, self.folds, self.classes, others, chosen)

    def averaged_scores(self, name: str, draws: int) -> Tensor:
        """Return the out-of-fold scores [N, K] of a probe of `scores`, averaged over several draws of folds.

        The first draw is that of `scores`. Its penalty serves for all others.
        """
        first = self.scores[name]
        inputs, total = over_time(self.features)[name], first.scores.clone()
        labels, groups, count = self.labels.tolist(), self.groups.tolist(), len(self.folds.unique())
        for draw in range(1, draws):
            folds = torch.tensor(spread_folds(labels, groups, count, self.seed + draw))
            total += cross_validate(inputs, self.labels, folds, self.classes, penalty=first.penalty).scores
        return total / draws

    def hits(self, scores: Tensor) -> Tensor:
        """Return which clips have their highest score [N, K] at their label: float32 [N]."""
        return (scores.argmax(dim=1) == self.labels).float()


def probe_task(
    clips: ClipList, readings: Readings, copies: Sequence[Duplicate], folds: int, seed: int
) -> ProbeTask | str:
    """Return the clips that probes can use, or a sentence that says why there are none.

    Copies count as one group. Classes with a single group are left out, since no probe can both see and be asked them.
    """
    if not clips.is_labeled:
        return "The clips have no labels, so no probe was trained."
    every, labels = clips.groups(), clips.labels()
    same = clusters(copies, len(clips))
    names: dict[tuple[str, str], int] = {}
    own = [names.setdefault(("group", str(g)) if g is not None else ("clip", str(i)), i) for i, g in enumerate(every)]
    joined = clusters([Duplicate(own[i], own[first], (), 0.0) for i, first in enumerate(same)], len(clips))
    groups = [joined[own[index]] for index in range(len(clips))]
    spread: dict[int, set[int]] = defaultdict(set)
    for index in readings.places:
        spread[labels[index]].add(groups[index])
    usable = {label for label, own_groups in spread.items() if len(own_groups) > 1}
    rows = [row for row, index in enumerate(readings.places) if labels[index] in usable]
    if len(usable) < 2:
        return "Fewer than two classes have clips of two groups, so no probe was trained."
    places = [readings.places[row] for row in rows]
    kept = [labels[place] for place in places]
    count = min(folds, len({groups[place] for place in places}))
    return ProbeTask(
        places,
        reduce_features(readings.features[rows]),
        torch.tensor(kept),
        torch.tensor(spread_folds(kept, [groups[place] for place in places], count, seed)),
        torch.tensor([groups[place] for place in places]),
        len(clips.class_names),
        "clip" if all(group is None for group in every) else "group",
        seed,
    )
