"""Steps whose loss or gradients are not finite: skipped on the device, counted, and traced to their samples.

Nothing here waits for the device before `take`.
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
    """Whether an optimiser step was skipped, and if so the samples of all processes that were in it."""

    skipped: bool
    samples: list[int]


class StepGuard:
    """Skips the optimizer's step on all processes if loss or gradients are not finite on one.

    A gradient scaler checks the gradients itself; with one, only the loss counts here. The running statistics of
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
        """Note a micro-batch: its loss, and its sample numbers [B]."""
        self.bad = self.bad + (~loss.detach().isfinite()).float()
        if samples is not None:
            self.samples.append(samples)

    def close(self, grad_norm: Tensor) -> None:
        """Called between the last backward of a step and the step."""
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
        """The steps since the last call; called by all processes together."""
        flags = torch.stack([flag for flag, _ in self.steps]).tolist() if self.steps else []
        steps: list[Any] = [Step(False, []) for _ in flags]
        for place, (flag, (_, batches)) in enumerate(zip(flags, self.steps, strict=True)):
            if flag:
                own = [number for batch in batches for number in batch.tolist()]
                steps[place] = Step(True, sorted(gather_object(own)))
        self.steps = []
        return steps


def diverged(steps: int, before: int, names: list[str]) -> str:
    """What to say to somebody whose run has diverged."""
    return (
        f"{steps} steps in a row, the last before step {before}, had a loss or gradients that are not finite; samples "
        f"of the last: {', '.join(names)}. Look at these samples, lower optim.lr, or train with mixed_precision no or "
        "bf16; the checkpoints hold the last good weights"
    )
