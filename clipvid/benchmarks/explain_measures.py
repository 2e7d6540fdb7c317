"""Measures of explanations on clips whose object has a known place.

Shapes: T frames, H x W patches, S image side, N = T H W cells of a map, L steps of a curve.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from clipvid.adapters.marks import Points, Tracks
from clipvid.benchmarks.explain_clips import KnownClip
from clipvid.inference.explain.explanation import Explanation
from clipvid.inference.explain.target import Target, logits_of
from clipvid.inference.explain.time import exact_shapley, frame_importance
from clipvid.model.video_clip import VideoCLIP


def pointing(relevance: Tensor, on_object: Tensor) -> float:
    """Return 1 if the highest relevance [T, H, W] is on the object, else 0."""
    return float(on_object.flatten()[relevance.argmax()])


def removal_curves(
    model: VideoCLIP, clip: Tensor, target: Target, relevance: Tensor, steps: int
) -> tuple[float, float]:
    """Return the mean probability of the class while cells are removed, and while they are inserted.

    Cells of a map [T, H, W] are taken in the order of their relevance, the highest first, in `steps` equal steps. A
    removed patch has the mean color of its frame. A faithful map has a low first and a high second value.
    """
    frames, grid = clip.shape[1], relevance.shape[1:]
    patch = clip.shape[-2] // grid[0], clip.shape[-1] // grid[1]
    blank = clip.mean(dim=(-2, -1), keepdim=True).expand_as(clip)
    order = relevance.flatten().argsort(descending=True, stable=True).to(clip.device)
    means = []
    for is_insertion in (False, True):
        probabilities = []
        for step in range(steps + 1):
            chosen = torch.zeros(order.numel(), device=clip.device)
            chosen[order[: round(order.numel() * step / steps)]] = 1
            mask = chosen.view(1, frames, 1, *grid).repeat_interleave(patch[0], 3).repeat_interleave(patch[1], 4)
            shown = mask if is_insertion else 1 - mask
            logits = logits_of(model, clip * shown + blank * (1 - shown))
            probabilities.append(float(logits.softmax(dim=-1)[0, target.label]))
        means.append(sum(probabilities) / len(probabilities))
    return means[0], means[1]


def frame_agreement(model: VideoCLIP, clip: Tensor, target: Target) -> float:
    """Return Spearman's correlation of the importance of frames with their exact Shapley values."""
    quick, exact = frame_importance(model, clip, target), exact_shapley(model, clip, target)
    return _correlation(quick.numpy(), exact.numpy())


def randomized(model: VideoCLIP, seed: int) -> VideoCLIP:
    """Return a copy of the model with the values of every tensor of its image side in a random order.

    This is the check of Adebayo et al. (NeurIPS 2018, https://arxiv.org/abs/1810.03292) with the sizes of the weights
    kept.
    """
    model = copy.deepcopy(model, {id(model.text.tokenizer): model.text.tokenizer})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in (model.encoder, model.pooling):
            for value in part.parameters():
                order = torch.randperm(value.numel(), generator=generator).to(value.device)
                value.copy_(value.flatten()[order].view_as(value))
    return model


def map_correlation(one: Tensor, other: Tensor) -> float:
    """Return Spearman's correlation of two maps."""
    return _correlation(one.flatten().cpu().numpy(), other.flatten().cpu().numpy())


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Return Spearman's correlation, 0 if one of the two is constant."""
    return float(np.nan_to_num(spearmanr(one, other).statistic)) if np.ptp(one) and np.ptp(other) else 0.0


def adapter_measures(explanation: Explanation, clip: KnownClip) -> dict[str, float]:
    """Return how well the points and tubes of adapters follow the object, averaged over blocks.

    `points` is the mean distance of points from the object's center in frame widths. `still points` is that of points
    that stay in their mean place, and `random points` that of points anywhere in the picture. `tubes` is the share of
    the later places on the object, of tubes that begin on it. `still tubes` is the same for tubes that stay in place.
    """
    values: dict[str, list[float]] = {}
    grid = explanation.relevance.shape[1], explanation.relevance.shape[2]
    for mark in (mark for own in explanation.adapters for mark in own.marks):
        if isinstance(mark, Points):
            centers = clip.track[mark.frames, :2]
            side = (torch.arange(32) + 0.5) / 32
            anywhere = torch.stack(torch.meshgrid(side, side, indexing="xy"), dim=-1).flatten(0, 1)
            values.setdefault("points", []).append(float((mark.positions - centers).norm(dim=-1).mean()))
            still = mark.positions.mean(dim=0)
            values.setdefault("still points", []).append(float((still - centers).norm(dim=-1).mean()))
            values.setdefault("random points", []).append(float(torch.cdist(centers, anywhere).mean()))
        if isinstance(mark, Tracks):
            on_object = clip.on_object(grid)
            started = mark.positions[_cells(on_object[:1], mark.positions[:, :1])[:, 0]]
            if len(started) and len(clip.track) > 1:
                still = started[:, :1].expand_as(started)
                for name, paths in (("tubes", started), ("still tubes", still)):
                    share = _cells(on_object[1:], paths[:, 1:]).float().mean()
                    values.setdefault(name, []).append(float(share))
    return {name: sum(each) / len(each) for name, each in values.items()}


def _cells(maps: Tensor, positions: Tensor) -> Tensor:
    """Read maps [T, H, W] at places [K, T, 2], giving [K, T]."""
    size = torch.tensor(maps.shape[:0:-1])
    cells = (positions * size).long().clamp(min=0).minimum(size - 1)
    return maps[torch.arange(len(maps)), cells[..., 1], cells[..., 0]]
