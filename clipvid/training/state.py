"""Settings and state of the training loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from clipvid import InputError
from clipvid.registry import FINITE, check_ranges


@dataclass(frozen=True)
class LoopSettings:
    """How long to train and what to write down on the way.

    epochs: passes over the data. max_grad_norm: gradients are clipped to this norm.
    ema_decay: of the weights' moving average, which is then what is evaluated and saved; 0 for none.
    max_skipped_steps: so many steps in a row with a non-finite loss or gradient end the run; each is skipped.
    save_steps: optimiser steps between checkpoints, beside the one of every epoch; 0 for no more than that.
    save_total_limit: how many are kept. logging_steps: optimiser steps between entries of the log.
    load_best_model_at_end: keep the weights of the best evaluation, not the last. metric_for_best_model: the figure
        that is compared, higher being better: `val_top1`, or `val_object` in training without labels or on stills.
    """

    epochs: int = 10
    max_grad_norm: float = 1.0
    ema_decay: float = 0.0
    max_skipped_steps: int = 10
    save_steps: int = 0
    save_total_limit: int = 2
    logging_steps: int = 10
    load_best_model_at_end: bool = False
    metric_for_best_model: str = "val_top1"

    def __post_init__(self) -> None:
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"ema_decay={self.ema_decay} must lie in [0, 1); 0.999 is usual, 0 is for none")
        check_ranges("training", self, save_steps=(0, FINITE))
        if not self.max_grad_norm > 0:
            raise InputError(f"max_grad_norm={self.max_grad_norm} must be above 0; .inf clips nothing")
        for name in ("epochs", "max_skipped_steps", "save_total_limit", "logging_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1")


@dataclass
class TrainState:
    """Where a run stands: whole epochs done, optimiser steps done in this one and in all, what was logged, the best
    evaluation (`value`, `epoch`), steps skipped in all and in a row, and each process's figures not yet logged."""

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    skipped: int = 0
    skipped_in_row: int = 0
    windows: list[dict[str, list[float]]] = field(default_factory=list)

    def count(self, skipped: bool) -> None:
        """Another step was done or skipped."""
        self.skipped += skipped
        self.skipped_in_row = self.skipped_in_row + 1 if skipped else 0
