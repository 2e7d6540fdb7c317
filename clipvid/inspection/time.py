"""Inputs of probes that see the frames of a clip averaged or in order.

Shapes: N clips, T frames, R components, C cosines.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clipvid.data.sampling import keyed_generator

COSINES = 4  # of the course of a feature over time: its mean, its trend, and two finer ones
SINGLE, BAG, ORDERED = "single frame", "bag of frames", "ordered frames"
REVERSED, SHUFFLED = "reversed", "shuffled"


def over_time(features: Tensor) -> dict[str, Tensor]:
    """Return the inputs of the probes of averaged and of ordered frames, from features [N, T, R].

    The ordered probe sees the mean too, so it knows all that the other one knows.
    """
    course = cosines(features, min(COSINES, features.shape[1]))
    return {BAG: course[:, 0], ORDERED: course.flatten(1)}


def cosines(features: Tensor, count: int) -> Tensor:
    """Return the mean and the first coefficients of the cosine transform over time, [N, T, R] -> [N, C, R].

    Reversing a clip changes the sign of every second coefficient.
    """
    length = features.shape[1]
    moments = (torch.arange(length) + 0.5) / length
    rows = [torch.full((length,), 1 / length)]
    rows += [torch.cos(math.pi * k * moments) * (2 / length) for k in range(1, count)]
    return torch.einsum("ct,ntr->ncr", torch.stack(rows), features)


def other_order(features: Tensor, order: str) -> Tensor:
    """Return the features [N, T, R] of reversed or of shuffled clips. Each clip has its own shuffle."""
    if order == REVERSED:
        return features.flip(1)
    shuffles = [torch.randperm(features.shape[1], generator=keyed_generator(0, clip)) for clip in range(len(features))]
    return features.gather(1, torch.stack(shuffles)[:, :, None].expand_as(features))


def spread_frames(features: Tensor, count: int) -> Tensor:
    """Return `count` frames spread over the clip, [N, T, R] -> [N, count, R]."""
    length = features.shape[1]
    return features[:, (2 * torch.arange(count) + 1) * length // (2 * count)]
