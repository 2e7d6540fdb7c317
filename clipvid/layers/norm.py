"""Normalisation of convolutional feature maps, with a policy for BatchNorm's statistics."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

POLICIES = ("batch", "frozen_batch", "group")


class PausableBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose running statistics can be held still while batch statistics are used.

    eval_batch_stats: use batch statistics in evaluation too; the running ones are then neither used nor moved.
    """

    recording = True
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eval_batch_stats: bool = False):
        super().__init__(channels)
        self.eval_batch_stats = eval_batch_stats

    def forward(self, input: Tensor) -> Tensor:
        ordinary = self.recording if self.training else not self.eval_batch_stats
        if ordinary:
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


def build_norm(policy: str, channels: int, eval_batch_stats: bool = False) -> nn.Module:
    """`batch`: batch statistics in training, stored ones in evaluation (batch ones with `eval_batch_stats`);
    `frozen_batch`: stored ones always; `group`: GroupNorm, which knows no batch. All with eps 1e-5."""
    if policy == "group":
        return nn.GroupNorm(math.gcd(channels, 32), channels)
    if policy == "frozen_batch":
        return FrozenBatchNorm2d(channels)
    return PausableBatchNorm2d(channels, eval_batch_stats)


@contextmanager
def frozen_bn_statistics(module: nn.Module) -> Iterator[None]:
    """Run `module` without touching running statistics: what the second pass of checkpointing needs."""
    norms = [child for child in module.modules() if isinstance(child, PausableBatchNorm2d)]
    for norm in norms:
        norm.recording = False
    try:
        yield
    finally:
        for norm in norms:
            norm.recording = True
