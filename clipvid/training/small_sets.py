"""Batches for training sets that are smaller than one."""

from __future__ import annotations

from dataclasses import replace

from clipvid import InputError
from clipvid.training.config import TrainingConfig


def check_fills_batch(training: TrainingConfig, num_clips: int, processes: int) -> None:
    """Raise InputError if an epoch has fewer clips than one optimizer step takes.

    Args:
        training: settings of the run.
        num_clips: videos times `data.repeats`.
        processes: number of processes.
    """
    size, steps = training.per_device_train_batch_size, training.gradient_accumulation_steps
    if num_clips < size * steps * processes:
        raise InputError(
            f"{num_clips} training videos do not fill one global batch of {size * steps * processes} "
            f"(training.per_device_train_batch_size {size} x processes {processes} x "
            f"training.gradient_accumulation_steps {steps}); lower one of the options, or use fewer processes"
        )


def fit_small_set(training: TrainingConfig, num_clips: int, processes: int) -> TrainingConfig:
    """Return settings whose batch an epoch of `num_clips` clips fills: the largest batch, and as few parts as needed.

    Raises:
        InputError: there are fewer clips than processes.
    """
    size, steps = training.per_device_train_batch_size, training.gradient_accumulation_steps
    if num_clips >= size * steps * processes:
        return training
    steps = min(steps, max(num_clips // processes, 1))
    size = min(size, max(num_clips // (processes * steps), 1))
    smaller = replace(training, per_device_train_batch_size=size, gradient_accumulation_steps=steps)
    check_fills_batch(smaller, num_clips, processes)
    return smaller
