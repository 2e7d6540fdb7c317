"""Normalisation of convolutional feature maps, with a policy for BatchNorm's statistics."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

POLICIES = ("batch", "frozen_batch", "group")


class PausableBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose running statistics can be held still while batch statistics are used."""

    recording = True
    running_mean: Tensor
    running_var: Tensor

    def forward(self, input: Tensor) -> Tensor:
        if self.recording or not self.training:
            return super().forward(input)
        # Checkpointing wants the same tensors saved as in the first pass, so copies stand in for the statistics.
        mean, variance = self.running_mean.clone(), self.running_var.clone()
        return nn.functional.batch_norm(input, mean, variance, self.weight, self.bias, True, 0.0, self.eps)


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d that uses its stored statistics in training too; weight and bias are trained."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )


def build_norm(policy: str, channels: int) -> nn.Module:
    """`batch`: batch statistics in training, stored ones in evaluation; `frozen_batch`: stored ones always;
    `group`: GroupNorm, which knows no batch. All with eps 1e-5."""
    if policy == "group":
        return nn.GroupNorm(math.gcd(channels, 32), channels)
    return {"batch": PausableBatchNorm2d, "frozen_batch": FrozenBatchNorm2d}[policy](channels)


@contextmanager
def hold_statistics(module: nn.Module) -> Iterator[None]:
    """Run `module` without touching running statistics: what the second pass of checkpointing needs."""
    norms = [child for child in module.modules() if isinstance(child, PausableBatchNorm2d)]
    for norm in norms:
        norm.recording = False
    try:
        yield
    finally:
        for norm in norms:
            norm.recording = True
