"""Steps with non-finite loss or gradients: skipped on the device, counted, and traced to their samples.

The device is not synchronized before `take`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from clipvid.layers.norm import PausableBatchNorm2d
from clipvid.training.optim import SkippingAdamW


class Step(NamedTuple):
    """Result of an optimizer step: True if it was skipped, and then the samples of all processes in it."""

    skipped: bool
    samples: list[int]


class StepGuard:
    """Guard that skips the optimizer's step on all processes if loss or gradients are not finite on one.

    A gradient scaler checks the gradients itself, so with one only the loss is checked here. The running statistics of
    BatchNorms are restored too.
    """

    def __init__(self, accelerator: Accelerator, model: nn.Module, optimizer: SkippingAdamW):
        self.accelerator, self.optimizer = accelerator, optimizer
        norms = [module for module in model.modules() if isinstance(module, PausableBatchNorm2d)]
        self.statistics = [buffer for norm in norms for buffer in norm.buffers()]
        self.steps: list[tuple[Tensor, list[Tensor]]] = []
        self._begin()

    def _begin(self) -> None:
        self.bad = torch.zeros((), device=self.accelerator.device)
        self.samples: list[Tensor] = []
        self.kept = [buffer.clone() for buffer in self.statistics]

    def watch(self, loss: Tensor, samples: Tensor | None) -> None:
        """Add a micro-batch: its loss, and its sample indices [B]."""
        self.bad = self.bad + (~loss.detach().isfinite()).float()
        if samples is not None:
            self.samples.append(samples)

    def close(self, grad_norm: Tensor) -> None:
        """Finish a step. Called between its last backward pass and the update."""
        scaled = self.accelerator.scaler is not None
        bad = self.bad if scaled else self.bad + (~grad_norm.isfinite()).float()
        if self.accelerator.num_processes > 1:
            bad = self.accelerator.reduce(bad, "sum")
        flag = (bad > 0).float()
        if not scaled:
            self.optimizer.skip_next_step(flag)
        for buffer, kept in zip(self.statistics, self.kept, strict=True):
            buffer.copy_(torch.where(flag.bool(), kept, buffer))
        self.steps.append((flag, self.samples))
        self._begin()

    def take(self) -> list[Step]:
        """Return the steps since the last call. All processes call this together."""
        flags = torch.stack([flag for flag, _ in self.steps]).tolist() if self.steps else []
        steps: list[Any] = [Step(False, []) for _ in flags]
        for place, (flag, (_, batches)) in enumerate(zip(flags, self.steps, strict=True)):
            if flag:
                own = [number for batch in batches for number in batch.tolist()]
                steps[place] = Step(True, sorted(gather_object(own)))
        self.steps = []
        return steps


def diverged(steps: int, before: int, names: list[str]) -> str:
    """Return the error message of a diverged run."""
    return (
        f"{steps} steps in a row, the last before step {before}, had a loss or gradients that are not finite; samples "
        f"of the last: {', '.join(names)}. Check these samples, lower optim.lr, or train with mixed_precision no or "
        "bf16. The checkpoints contain the last good weights"
    )
