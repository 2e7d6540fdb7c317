"""Inputs of probes that see the frames of a clip averaged or in order.

Shapes: N clips, T frames, R components, C cosines.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

COSINES = 4  # of the course of a feature over time: its mean, its trend, and two finer ones
BAG, ORDERED = "bag of frames", "ordered frames"


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
