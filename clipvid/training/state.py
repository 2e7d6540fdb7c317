"""Settings and state of the training loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from clipvid import InputError
from clipvid.registry import FINITE, check_ranges


@dataclass(frozen=True)
class LoopSettings:
    """Settings of the training loop.

    Attributes:
        epochs: Passes over the data.
        max_grad_norm: Norm to which gradients are clipped.
        ema_decay: Decay of the weights' moving average, which is then evaluated and saved; 0 for none.
        max_skipped_steps: Number of consecutive skipped steps that ends the run. Steps with a non-finite loss or
            gradient are skipped.
        save_steps: Optimizer steps between checkpoints, in addition to the one of every epoch; 0 for none.
        save_total_limit: Number of checkpoints to keep.
        logging_steps: Optimizer steps between log entries.
        load_best_model_at_end: Keep the weights of the best evaluation, not the last.
        early_stopping: See `TrainingConfig`.
        metric_for_best_model: Figure to maximize: `val_top1`, or `val_object` in training without labels or on stills.
            For several labels per video it is `val_map`, which `val_top1` then means, too.
    """

    epochs: int = 10
    max_grad_norm: float = 1.0
    ema_decay: float = 0.0
    max_skipped_steps: int = 10
    save_steps: int = 0
    save_total_limit: int = 2
    logging_steps: int = 10
    load_best_model_at_end: bool = False
    early_stopping: int = 0
    metric_for_best_model: str = "val_top1"

    def __post_init__(self) -> None:
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"ema_decay={self.ema_decay} must be in [0, 1); 0.999 is usual, 0 for none")
        check_ranges("training", self, save_steps=(0, FINITE), early_stopping=(0, FINITE))
        if not self.max_grad_norm > 0:
            raise InputError(f"max_grad_norm={self.max_grad_norm} must be above 0; use .inf for no clipping")
        for name in ("epochs", "max_skipped_steps", "save_total_limit", "logging_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1")


@dataclass
class TrainState:
    """Progress of a run.

    Attributes:
        epoch: Complete epochs.
        step_in_epoch: Optimizer steps in the current epoch.
        step: Optimizer steps in total.
        history: Log entries.
        best: Best evaluation (`value`, `epoch`).
        skipped: Skipped steps in total.
        skipped_in_row: Skipped steps since the last successful one.
        windows: Figures of each process that are not yet logged.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    skipped: int = 0
    skipped_in_row: int = 0
    windows: list[dict[str, list[float]]] = field(default_factory=list)

    def evaluations_since_best(self, metric: str) -> int:
        """Return the number of evaluations by `metric` after the best one."""
        if self.best is None:
            return 0
        return sum(metric in entry and entry["epoch"] > self.best["epoch"] for entry in self.history)

    def count(self, skipped: bool) -> None:
        """Count a step, done or skipped."""
        self.skipped += skipped
        self.skipped_in_row = self.skipped_in_row + 1 if skipped else 0
