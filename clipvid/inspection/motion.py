"""Answer to whether the classes of a data set need motion: probes of single, averaged and ordered frames.

Shapes: N clips, T frames, R components, K classes, G groups, B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy.stats import binomtest, false_discovery_control
from torch import Tensor

from clipvid.data.sampling import keyed_generator
from clipvid.inspection.labels import pairwise_hits
from clipvid.inspection.tasks import ProbeTask
from clipvid.inspection.time import BAG, ORDERED, REVERSED, SHUFFLED, SINGLE, over_time, spread_frames

Need = Literal["order", "frames", "one frame", "unclear"]
SHARES = (0.25, 0.5, 1.0)  # of the training clips, in the learning curve
_RESAMPLES = 1000
_AT_CHANCE, _GAIN, _LEAST = 0.7, 0.15, 8  # accuracy without order, gain by order and clips of a pair
_MATTERS = 0.02  # gain of accuracy below which an answer does not count it
_FALSE_SHARE = 0.05  # expected share of pairs that are named wrongly


@dataclass(frozen=True)
class Share:
    """A share of clips, or a difference of two, with its 95% interval over resampled groups."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class OrderPair:
    """Two classes that a bag of frames does not separate, and ordered frames do.

    Attributes:
        first: A class.
        second: Another class.
        bag: Share of their clips that a bag of frames assigns to the right one of the two.
        ordered: The same for ordered frames.
        count: Number of their clips.
    """

    first: int
    second: int
    bag: float
    ordered: float
    count: int


@dataclass(frozen=True)
class MotionResult:
    """Accuracies of the probes, and what follows from them.

    Attributes:
        need: What the classes need.
        chance: Share of the largest class.
        accuracy: By probe, and of ordered frames on `reversed` and `shuffled` clips.
        differences: By name, of probes on the same clips.
        classes: Accuracy of each class by probe; None for a class without clips.
        pairs: Pairs of classes that differ only in order.
        frames: Accuracy by number of frames.
        clips: Accuracy by share of the training clips.
        last_doubling: Gain from half to all training clips.
        unit: `group` or `clip`, what is held out together.
        count: Number of clips.
    """

    need: Need
    chance: float
    accuracy: dict[str, Share]
    differences: dict[str, Share]
    classes: dict[str, list[float | None]]
    pairs: list[OrderPair]
    frames: dict[int, Share]
    clips: dict[float, Share]
    last_doubling: Share
    unit: str
    count: int

    def record(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Return the result as JSON."""
        pairs = [
            asdict(pair) | {"first": class_names[pair.first], "second": class_names[pair.second]} for pair in self.pairs
        ]
        classes = {name: dict(zip(class_names, values, strict=True)) for name, values in self.classes.items()}
        return asdict(self) | {"pairs": pairs, "classes": classes}


def measure_motion(task: ProbeTask, seed: int) -> MotionResult:
    """Return the answer for labeled clips.

    Args:
        task: The clips.
        seed: Seed of the resamples and of the learning curve.
    """
    single = task.probe(spread_frames(task.features, 1)[:, 0]).scores
    scores = {SINGLE: single} | {name: own.scores for name, own in task.scores.items()}
    ordered = task.scores[ORDERED]
    hits = {name: task.hits(own) for name, own in scores.items()}
    hits |= {f"{ORDERED}, {order}": task.hits(ordered.others[order]) for order in (REVERSED, SHUFFLED)}
    resample = Resamples(task.groups, seed)
    differences = {
        f"{later} − {former}": resample.share(hits[later] - hits[former])
        for former, later in ((SINGLE, BAG), (SINGLE, ORDERED), (BAG, ORDERED), (f"{ORDERED}, {REVERSED}", ORDERED))
    }
    pairs = order_pairs(task, scores[BAG], scores[ORDERED])
    chance = float(task.labels.bincount().max()) / len(task.labels)
    accuracy = {name: resample.share(own) for name, own in hits.items()}
    need = decide(chance, accuracy, differences, bool(pairs))
    probe = ORDERED if need == "order" else BAG
    curve = {share: hits[probe] if share == 1 else _fewer_clips(task, probe, share, seed) for share in SHARES}
    length = task.features.shape[1]
    frames = {count: hits[probe] if count == length else _fewer_frames(task, probe, count) for count in _counts(length)}
    return MotionResult(
        need,
        chance,
        accuracy,
        differences,
        {name: _by_class(task, hits[name]) for name in scores},
        pairs,
        {count: resample.share(own) for count, own in frames.items()},
        {share: resample.share(own) for share, own in curve.items()},
        resample.share(curve[1.0] - curve[0.5]),
        task.unit,
        len(task.labels),
    )


def decide(chance: float, accuracy: dict[str, Share], differences: dict[str, Share], has_pairs: bool) -> Need:
    """Return what the classes need.

    Order counts if ordered frames are better than the bag, or if pairs of classes differ only in it. Several frames
    count if the bag or ordered frames are better than a single one.
    """
    if max(own.low for own in accuracy.values()) <= chance:
        return "unclear"

    def matters(gain: Share) -> bool:
        return gain.low > 0 and gain.value >= _MATTERS

    if has_pairs or matters(differences[f"{ORDERED} − {BAG}"]):
        return "order"
    gains = [differences[f"{name} − {SINGLE}"] for name in (BAG, ORDERED)]
    return "frames" if any(map(matters, gains)) else "one frame"


def order_pairs(task: ProbeTask, bag: Tensor, ordered: Tensor) -> list[OrderPair]:
    """Return the pairs of classes that differ only in order, the clearest first.

    The clips that only one of the two probes assigns rightly are compared by a sign test. The share of pairs that are
    named wrongly is limited by the rule of Benjamini and Hochberg.

    Args:
        task: The clips.
        bag: Scores [N, K] of the bag of frames.
        ordered: Scores [N, K] of ordered frames.
    """
    accuracies = []
    for scores in (bag, ordered):
        right, counts = pairwise_hits(scores, task.labels)
        total = counts[:, None] + counts[None]
        accuracies.append((right + right.T) / total.clamp_min(1))
    is_open = (accuracies[0] <= _AT_CHANCE) & (total >= _LEAST) & (counts[:, None] > 0) & (counts[None] > 0)
    tested = is_open.triu(1).nonzero().tolist()
    if not tested:
        return []
    chances = false_discovery_control([_sign_test(task.labels, bag, ordered, a, b) for a, b in tested])
    pairs = [
        OrderPair(a, b, float(accuracies[0][a, b]), float(accuracies[1][a, b]), int(total[a, b]))
        for (a, b), chance in zip(tested, chances.tolist(), strict=True)
        if chance <= _FALSE_SHARE and accuracies[1][a, b] - accuracies[0][a, b] >= _GAIN
    ]
    return sorted(pairs, key=lambda pair: (pair.bag - pair.ordered, pair.first, pair.second))


class Resamples:
    """Bootstrap over groups of clips. All shares are over the same draws.

    Args:
        groups: Group of each clip, int64 [N].
        seed: Seed of the draws.
    """

    def __init__(self, groups: Tensor, seed: int) -> None:
        names, self.place = groups.unique(return_inverse=True)
        self.sizes = self.place.bincount().double()
        drawn = torch.randint(len(names), (_RESAMPLES, len(names)), generator=keyed_generator(seed, 1))
        ones = torch.ones_like(drawn, dtype=torch.float64)
        self.counts = torch.zeros(_RESAMPLES, len(names), dtype=torch.float64).scatter_add_(1, drawn, ones)

    def share(self, values: Tensor) -> Share:
        """Return the mean of values [N] with its interval."""
        sums = torch.zeros_like(self.sizes).index_add_(0, self.place, values.double())
        means = (self.counts @ sums) / (self.counts @ self.sizes)
        low, high = np.percentile(means.numpy(), (2.5, 97.5))
        return Share(float(values.double().mean()), float(low), float(high))


def _sign_test(labels: Tensor, bag: Tensor, ordered: Tensor, first: int, second: int) -> float:
    """Return the probability that ordered frames win as often by chance, among the clips of two classes."""
    own = (labels == first) | (labels == second)
    is_first = labels[own] == first
    right = [(scores[own, first] > scores[own, second]) == is_first for scores in (bag, ordered)]
    won, lost = int((right[1] & ~right[0]).sum()), int((right[0] & ~right[1]).sum())
    return float(binomtest(won, won + lost, alternative="greater").pvalue) if won + lost else 1.0


def _by_class(task: ProbeTask, hits: Tensor) -> list[float | None]:
    counts = task.labels.bincount(minlength=task.classes).tolist()
    sums = task.labels.bincount(hits.double(), minlength=task.classes).tolist()
    return [right / count if count else None for right, count in zip(sums, counts, strict=True)]


def _counts(frames: int) -> list[int]:
    """Return 1, 2, 4 ... up to the number of frames."""
    return sorted({*(2**power for power in range(frames.bit_length())), frames})


def _fewer_frames(task: ProbeTask, probe: str, count: int) -> Tensor:
    """Return the hits of a probe that sees some of the frames."""
    return task.hits(task.probe(over_time(spread_frames(task.features, count))[probe]).scores)


def _fewer_clips(task: ProbeTask, probe: str, share: float, seed: int) -> Tensor:
    """Return the hits of a probe that learns from a share of each class. Smaller shares are parts of larger ones."""
    chosen = torch.zeros(len(task.labels), dtype=torch.bool)
    for label in task.labels.unique().tolist():
        places = (task.labels == label).nonzero().flatten()
        order = torch.randperm(len(places), generator=keyed_generator(seed, 2, label))
        chosen[places[order[: max(round(share * len(places)), 1)]]] = True
    return task.hits(task.probe(over_time(task.features)[probe], chosen=chosen).scores)
