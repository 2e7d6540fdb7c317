"""Normalization of convolutional feature maps, with a policy for BatchNorm's statistics."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

POLICIES = ("batch", "frozen_batch", "group")


class PausableBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d that can use batch statistics without updating the running ones.

    Args:
        channels: Number of channels.
        eval_batch_stats: Use batch statistics in evaluation too, without reading or updating the running ones.
    """

    recording = True
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eval_batch_stats: bool = False):
        super().__init__(channels)
        self.eval_batch_stats = eval_batch_stats

    def forward(self, input: Tensor) -> Tensor:
        """Normalize [N, C, H, W]."""
        ordinary = self.recording if self.training else not self.eval_batch_stats
        if ordinary:
            return super().forward(input)
        # Checkpointing requires the same saved tensors as in the first pass, so pass copies of the statistics.
        mean, variance = self.running_mean.clone(), self.running_var.clone()
        return nn.functional.batch_norm(input, mean, variance, self.weight, self.bias, True, 0.0, self.eps)


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d that uses its stored statistics in training too. Weight and bias are trained."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalize [N, C, H, W]."""
        return nn.functional.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )


def build_norm(policy: str, channels: int, eval_batch_stats: bool = False) -> nn.Module:
    """Build a norm with eps 1e-5.

    Args:
        policy: `batch` uses batch statistics in training and stored ones in evaluation. `frozen_batch` always uses
            stored ones. `group` is GroupNorm, independent of the batch.
        channels: Number of channels.
        eval_batch_stats: With `batch`, use batch statistics in evaluation too.
    """
    if policy == "group":
        return nn.GroupNorm(math.gcd(channels, 32), channels)
    if policy == "frozen_batch":
        return FrozenBatchNorm2d(channels)
    return PausableBatchNorm2d(channels, eval_batch_stats)


@contextmanager
def frozen_bn_statistics(module: nn.Module) -> Iterator[None]:
    """Run `module` without updating running statistics, as needed in the recomputation of checkpointing."""
    norms = [child for child in module.modules() if isinstance(child, PausableBatchNorm2d)]
    for norm in norms:
        norm.recording = False
    try:
        yield
    finally:
        for norm in norms:
            norm.recording = True
