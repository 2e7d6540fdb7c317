"""Batches for training sets that are smaller than one."""

from __future__ import annotations

from dataclasses import replace

from clipvid.data.batches import check_fills_batch
from clipvid.training.config import TrainingConfig


def fit_small_set(training: TrainingConfig, num_clips: int, processes: int) -> TrainingConfig:
    """Return settings whose global batch is filled by an epoch of `num_clips` clips.

    Accumulation steps are kept as long as each gets a clip. The batch of a process is the largest that then fits.

    Args:
        training: Settings of the run.
        num_clips: Videos times `data.repeats`.
        processes: Number of processes.

    Raises:
        InputError: There are fewer clips than processes.
    """
    size, steps = training.per_device_train_batch_size, training.gradient_accumulation_steps
    if num_clips >= size * steps * processes:
        return training
    steps = min(steps, max(num_clips // processes, 1))
    size = min(size, max(num_clips // (processes * steps), 1))
    check_fills_batch(num_clips, size, processes, steps)
    return replace(training, per_device_train_batch_size=size, gradient_accumulation_steps=steps)
