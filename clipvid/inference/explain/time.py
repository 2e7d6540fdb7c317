"""Importance of frames and of their order for a score.

A frame is removed by a mixture of its neighbors. Shapes: T frames, K classes, S image side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import factorial

import torch
from torch import Tensor

from clipvid import InputError
from clipvid.inference.explain.target import CLIPS_AT_ONCE, Target, clips_at_once
from clipvid.model.encoder import FrozenFeatures
from clipvid.model.video_clip import VideoCLIP

EXACT_FRAMES = 8
Mixture = tuple[int, ...]  # frames whose mean is shown as one frame


@dataclass(frozen=True)
class OrderEffect:
    """Answer for the frames in another order.

    Attributes:
        name: `reversed` or `shuffled`.
        drop: Loss of score against the order of the video.
        label: Index of the class with the highest logit.
        probability: Its probability.
    """

    name: str
    drop: float
    label: int
    probability: float


@dataclass(frozen=True)
class TimeEffects:
    """Importance of frames and order. Values are losses of score, the logit difference of `Target`.

    Attributes:
        frames: [T], for each frame.
        swaps: [T-1], for each pair of neighboring frames that change places.
        orders: Effects of other orders of all frames, empty for a single frame.
    """

    frames: Tensor
    swaps: Tensor
    orders: tuple[OrderEffect, ...]


def time_effects(model: VideoCLIP, clip: Tensor, target: Target, exact: bool = False) -> TimeEffects:
    """Return the importance of the frames of a normalized clip [1, T, 3, S, S] and of their order.

    Args:
        model: Model in evaluation mode.
        clip: The clip.
        target: Class to explain.
        exact: Compute the Shapley values of the frames from all 2^T subsets. Otherwise, they are estimated from 5 T + 2
            subsets.
    """
    importance = exact_shapley if exact else frame_importance
    frames = importance(model, clip, target)
    count = clip.shape[1]
    orders = [list(range(count)), *(_swapped(count, first) for first in range(count - 1))]
    if count > 1:
        orders += [list(reversed(range(count))), shuffled_order(count)]
    logits = mixed_logits(model, clip, [[(frame,) for frame in order] for order in orders])
    scores = target.score(logits)
    drops, probabilities = (scores[0] - scores[1:]).cpu(), model.probabilities(logits).cpu()
    effects = []
    for place, name in enumerate(("reversed", "shuffled")[: 2 * (count > 1)], start=count - 1):
        best = int(probabilities[place + 1].argmax())
        effects.append(OrderEffect(name, float(drops[place]), best, float(probabilities[place + 1, best])))
    return TimeEffects(frames, drops[: count - 1], tuple(effects))


def _swapped(count: int, first: int) -> list[int]:
    order = list(range(count))
    order[first], order[first + 1] = first + 1, first
    return order


def shuffled_order(count: int) -> list[int]:
    """Return a fixed order of frames that is neither the original nor the reversed one, where one exists."""
    order: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(count)).tolist()
    trivial = (list(range(count)), list(reversed(range(count))))
    return order if order not in trivial else [*order[1:], order[0]]


def kept_frames(count: int, kept: Sequence[int]) -> list[Mixture]:
    """Return a clip in which every other frame is the mean of the nearest kept ones on both sides.

    Without kept frames, every frame is the mean of all frames.
    """
    if not kept:
        return [tuple(range(count))] * count
    before = [[place for place in kept if place <= frame][-1:] for frame in range(count)]
    after = [[place for place in kept if place >= frame][:1] for frame in range(count)]
    return [tuple(sorted({*one, *other})) for one, other in zip(before, after, strict=True)]


@torch.no_grad()
def mixed_logits(model: VideoCLIP, clip: Tensor, clips: Sequence[Sequence[Mixture]]) -> Tensor:
    """Return logits [B, K] in float32 of clips whose frames are mixtures of the frames of a clip [1, T, 3, S, S].

    The part of the model below the first adapter sees each mixture once.
    """
    mixtures = sorted({mixture for frames in clips for mixture in frames})
    depth = model.encoder.frame_depth()
    pictures = torch.stack([clip[:, mixture].mean(dim=1) for mixture in mixtures], dim=1)
    parts = pictures.split(CLIPS_AT_ONCE * clip.shape[1], dim=1)
    tokens = torch.cat([model.encoder.lower(part, depth).tokens[0] for part in parts])
    number = {mixture: place for place, mixture in enumerate(mixtures)}
    rows = torch.tensor([[number[mixture] for mixture in frames] for frames in clips], device=tokens.device)
    size = clips_at_once(model)
    return torch.cat([model(FrozenFeatures(tokens[part], depth)).logits.float() for part in rows.split(size)])


def subset_scores(model: VideoCLIP, clip: Tensor, target: Target, subsets: Sequence[Sequence[int]]) -> list[float]:
    """Return the score of `kept_frames` for each subset of the frames."""
    clips = [kept_frames(clip.shape[1], kept) for kept in subsets]
    scores: list[float] = target.score(mixed_logits(model, clip, clips)).tolist()
    return scores


def frame_importance(model: VideoCLIP, clip: Tensor, target: Target) -> Tensor:
    """Return estimates [T] of the Shapley values of frames from at most 5 T + 2 forward passes.

    This is the regression of KernelSHAP (Lundberg and Lee, NeurIPS 2017, https://arxiv.org/abs/1705.07874) on runs of
    frames instead of random subsets. The values of up to 3 frames are exact.
    """
    count = clip.shape[1]
    subsets = frame_runs(count)
    none, whole, *scores = subset_scores(model, clip, target, [[], [*range(count)], *subsets])
    if count == 1:
        return torch.tensor([whole - none])
    kept = torch.zeros(len(subsets), count, dtype=torch.float64)
    for row, subset in enumerate(subsets):
        kept[row, subset] = 1
    sizes = kept.sum(dim=1)
    root = (sizes * (count - sizes)).rsqrt()[:, None]  # of the weight of a subset
    gains = torch.tensor(scores, dtype=torch.float64)[:, None] - none
    # The values sum to the gain of all frames, so the last one follows from the others.
    last = kept[:, -1:]
    others = torch.linalg.lstsq((kept[:, :-1] - last) * root, (gains - last * (whole - none)) * root).solution[:, 0]
    return torch.cat([others, whole - none - others.sum()[None]]).float()


def frame_runs(count: int) -> list[list[int]]:
    """Return the runs of 1, T/4, T/2, 3T/4 and T-1 adjoining frames, where the first frame follows the last."""
    sizes = {1, count - 1, *(max(1, round(count * part)) for part in (0.25, 0.5, 0.75))} - {0, count}
    return [sorted((start + step) % count for step in range(size)) for size in sorted(sizes) for start in range(count)]


def exact_shapley(model: VideoCLIP, clip: Tensor, target: Target) -> Tensor:
    """Return the Shapley value [T] of each frame from all 2^T subsets of the frames.

    Raises:
        InputError: The clip has more than `EXACT_FRAMES` frames.
    """
    count = clip.shape[1]
    if count > EXACT_FRAMES:
        raise InputError(
            f"exact=True for {count} frames would need {2**count} passes; expected up to {EXACT_FRAMES} frames, or "
            "exact=False"
        )
    subsets = [kept for size in range(count + 1) for kept in combinations(range(count), size)]
    scores = dict(zip(subsets, subset_scores(model, clip, target, subsets), strict=True))
    values = torch.zeros(count, dtype=torch.float64)
    for kept, score in scores.items():
        for frame in set(range(count)) - set(kept):
            weight = factorial(len(kept)) * factorial(count - len(kept) - 1) / factorial(count)
            values[frame] += weight * (scores[tuple(sorted((*kept, frame)))] - score)
    return values.float()
