"""The order of samples: which (epoch, index) each process takes in which batch, in training and in evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Sampler

from clipvid import InputError
from clipvid.data.sampling import keyed_generator

Key: TypeAlias = tuple[int, int]


class TrainBatches(Sampler[list[Key]]):
    """Micro-batches of one rank, an epoch per iteration, each epoch in an order keyed by (seed, epoch).

    A step takes G = per_device_batch x world_size x accumulation clips, perm[step * G : (step + 1) * G], and
    micro-batch j of rank r is its slice of per_device_batch clips at (j * world_size + r) * per_device_batch: the
    clips of an optimiser step depend on G alone. The last, partial global batch of an epoch is dropped.

    Under repeated sampling (https://arxiv.org/abs/1901.09335) each video of an epoch comes `repeats` times in a row,
    as different clips: their keys count epochs `repeats` times as fast.

    Iterating to the end of an epoch moves on to the next. `set_position` goes to any (epoch, step), where a
    checkpoint was taken; the loader draws batches ahead, so the trainer counts its steps itself.

    Args:
        num_samples: videos in the data set.
        per_device_batch: clips per micro-batch.
        seed: the run's seed.
        world_size: processes.
        rank: this one.
        accumulation: micro-batches per optimiser step.
        repeats: clips of each video in an epoch.
        epoch: epoch to begin with.
        step: optimiser step of that epoch to begin with.
    """

    def __init__(
        self,
        num_samples: int,
        per_device_batch: int,
        *,
        seed: int,
        world_size: int = 1,
        rank: int = 0,
        accumulation: int = 1,
        repeats: int = 1,
        epoch: int = 0,
        step: int = 0,
    ) -> None:
        _check_rank(rank, world_size)
        for name, value in (
            ("per_device_batch", per_device_batch),
            ("accumulation", accumulation),
            ("repeats", repeats),
        ):
            if value < 1:
                raise InputError(f"{name} is {value}; expected at least 1")
        self.global_batch = per_device_batch * world_size * accumulation
        if num_samples * repeats < self.global_batch:
            raise InputError(
                f"{num_samples * repeats} training videos do not fill one global batch of {self.global_batch} "
                f"(per_device_batch {per_device_batch} x world_size {world_size} x accumulation {accumulation}); "
                "lower per_device_batch or accumulation, or use fewer processes"
            )
        self.num_samples, self.per_device_batch, self.seed = num_samples, per_device_batch, seed
        self.world_size, self.rank, self.accumulation, self.repeats = world_size, rank, accumulation, repeats
        self.set_position(epoch, step)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in an epoch."""
        return self.num_samples * self.repeats // self.global_batch

    def set_position(self, epoch: int, step: int = 0) -> None:
        """Begin the next iteration at optimiser step `step` of `epoch`; its end is the start of the next epoch."""
        if epoch < 0 or not 0 <= step <= self.steps_per_epoch:
            raise InputError(f"epoch {epoch}, step {step}: expected epoch >= 0, step in 0..{self.steps_per_epoch}")
        self.epoch, self.step = (epoch, step) if step < self.steps_per_epoch else (epoch + 1, 0)

    def __len__(self) -> int:
        """Micro-batches that the next iteration gives."""
        return (self.steps_per_epoch - self.step) * self.accumulation

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, first = self.epoch, self.step
        order = torch.randperm(self.num_samples, generator=keyed_generator(self.seed, epoch))
        for step in range(first, self.steps_per_epoch):
            for micro in range(self.accumulation):
                place = (micro * self.world_size + self.rank) * self.per_device_batch
                start = step * self.global_batch + place
                yield [self._key(epoch, order, clip) for clip in range(start, start + self.per_device_batch)]
        self.set_position(epoch + 1)

    def _key(self, epoch: int, order: Tensor, clip: int) -> Key:
        place, repeat = divmod(clip, self.repeats)
        return epoch * self.repeats + repeat, int(order[place])


class EvalBatches(Sampler[list[Key]]):
    """Batches of rank r of w: the samples in order are cut into batches, which the ranks take in turn.

    Each sample comes once over all ranks, and its batch is the same whatever their number and whatever was skipped:
    so are the digits that a model gives it. A rank may have a batch less than another, or none.
    """

    def __init__(self, num_samples: int, batch_size: int, *, world_size: int = 1, rank: int = 0) -> None:
        _check_rank(rank, world_size)
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; expected at least 1")
        self.num_samples, self.batch_size, self.world_size, self.rank = num_samples, batch_size, world_size, rank
        self.skipped: frozenset[int] = frozenset()

    def skip(self, starts: Iterable[int]) -> None:
        """Leave out the batches whose first samples are `starts`; all ranks must be told the same."""
        self.skipped = frozenset(starts)

    def _starts(self) -> list[int]:
        left = [start for start in range(0, self.num_samples, self.batch_size) if start not in self.skipped]
        return left[self.rank :: self.world_size]

    def __len__(self) -> int:
        return len(self._starts())

    def __iter__(self) -> Iterator[list[Key]]:
        for start in self._starts():
            yield [(0, index) for index in range(start, min(start + self.batch_size, self.num_samples))]


def _check_rank(rank: int, world_size: int) -> None:
    if not 0 <= rank < world_size:
        raise InputError(f"rank is {rank} of world_size {world_size}; expected 0 <= rank < world_size")
