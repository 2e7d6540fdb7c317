"""Choice of the clip to label next.

A clip is worth more the more clips resemble it that have no labeled clip near them (greedy k-medoids). With a
classifier, the clip and those that resemble it count by their uncertainty, 1 minus the margin of the two best classes.

Shapes: N clips, E embedding, K classes, C candidates, O other clips.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clipvid.data.sampling import keyed_generator

MOST_CANDIDATES, MOST_OTHERS = 1000, 5000  # clips that one choice compares; more are drawn at random
_SURE = 0.5  # share of the clips with the widest margins that checks are drawn from


def uncertainty(probabilities: Tensor) -> Tensor:
    """Return 1 minus the margin of the two best classes [N], of probabilities [N, K] with K at least 2."""
    best = probabilities.topk(2, dim=1).values
    return 1 - (best[:, 0] - best[:, 1])


def most_informative(
    features: Tensor, is_labeled: Tensor, is_open: Tensor, doubt: Tensor | None = None, seed: int = 0
) -> int | None:
    """Return the number of the clip whose label helps most, or None if no clip is open.

    Args:
        features: Video features [N, E].
        is_labeled: bool [N], clips with a label.
        is_open: bool [N], clips without a label that may be chosen.
        doubt: Values [N] of `uncertainty`. None before there is a classifier.
        seed: Seed of the draw of clips to compare, if there are many.
    """
    candidates, others = _drawn(is_open, MOST_CANDIDATES, seed), _drawn(~is_labeled, MOST_OTHERS, seed)
    if not len(candidates):
        return None
    directions = F.normalize(features - features.mean(dim=0), dim=1)
    distances = 1 - directions[others] @ directions[candidates].T  # [O, C]
    gain = (_distance_to_nearest(directions[others], directions[is_labeled])[:, None] - distances).clamp_min(0)
    worth = gain.sum(dim=0) if doubt is None else doubt[candidates] * (doubt[others] @ gain)
    return int(candidates[worth.argmax()])


def sure_clip(doubt: Tensor, is_open: Tensor, seed: int) -> int | None:
    """Return the number of a clip that a classifier is sure of, drawn by `seed`, or None if no clip is open."""
    places = is_open.nonzero().flatten()
    if not len(places):
        return None
    sure = places[doubt[places].argsort(stable=True)[: max(round(_SURE * len(places)), 1)]]
    return int(sure[torch.randint(len(sure), (1,), generator=keyed_generator(seed))])


def _drawn(is_member: Tensor, most: int, seed: int) -> Tensor:
    places = is_member.nonzero().flatten()
    if len(places) > most:
        places = places[torch.randperm(len(places), generator=keyed_generator(seed))[:most]]
    return places


def _distance_to_nearest(directions: Tensor, others: Tensor) -> Tensor:
    """Return the cosine distances of directions to the nearest of `others`; 2, the largest, if there are none."""
    if not len(others):
        return directions.new_full((len(directions),), 2.0)
    return 1 - (directions @ others.T).max(dim=1).values
