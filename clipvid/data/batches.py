"""Order of samples: the (epoch, index) keys of each process and batch, in training and evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Sampler

from clipvid import InputError
from clipvid.data.sampling import keyed_generator

Key: TypeAlias = tuple[int, int]


def check_fills_batch(num_clips: int, per_device_batch: int, processes: int, accumulation: int) -> None:
    """Raise InputError if an epoch has fewer clips than one optimizer step takes."""
    size = per_device_batch * processes * accumulation
    if num_clips < size:
        raise InputError(
            f"{num_clips} training videos do not fill one global batch of {size} "
            f"(training.per_device_train_batch_size {per_device_batch} x processes {processes} x "
            f"training.gradient_accumulation_steps {accumulation}); lower one of the options, or use fewer processes"
        )


class TrainBatches(Sampler[list[Key]]):
    """Micro-batches of one rank. Each iteration is one epoch, in an order keyed by (seed, epoch).

    A step takes G = per_device_batch x world_size x accumulation clips, perm[step * G : (step + 1) * G]. Micro-batch j
    of rank r is its slice of per_device_batch clips at (j * world_size + r) * per_device_batch. The clips of an
    optimizer step therefore depend on G alone. The last, partial global batch of an epoch is dropped.

    Under repeated sampling (https://arxiv.org/abs/1901.09335) each video of an epoch appears `repeats` times in a row,
    as different clips. Their keys count epochs `repeats` times as fast.

    Iterating to the end of an epoch advances to the next. `set_position` moves to the (epoch, step) of a checkpoint.
    The loader draws batches ahead, so the trainer counts its steps itself.

    Args:
        num_samples: Number of videos in the data set.
        per_device_batch: Clips per micro-batch.
        seed: Seed of the run.
        world_size: Number of processes.
        rank: Index of this process.
        accumulation: Micro-batches per optimizer step.
        repeats: Clips of each video in an epoch.
        balanced: Labels of the samples, to show every class equally often in an epoch of as many samples. None shows
            each sample once.
        epoch: First epoch.
        step: First optimizer step in that epoch.
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
        balanced: Sequence[int] | None = None,
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
        check_fills_batch(num_samples * repeats, per_device_batch, world_size, accumulation)
        self.num_samples, self.per_device_batch, self.seed = num_samples, per_device_batch, seed
        self.world_size, self.rank, self.accumulation, self.repeats = world_size, rank, accumulation, repeats
        self._classes = None if balanced is None else _by_label(balanced)
        self.set_position(epoch, step)

    @property
    def steps_per_epoch(self) -> int:
        """Number of optimizer steps in an epoch."""
        return self.num_samples * self.repeats // self.global_batch

    def set_position(self, epoch: int, step: int = 0) -> None:
        """Start the next iteration at optimizer step `step` of `epoch`. The last step + 1 means the next epoch."""
        if epoch < 0 or not 0 <= step <= self.steps_per_epoch:
            raise InputError(f"epoch {epoch}, step {step}: expected epoch >= 0, step in 0..{self.steps_per_epoch}")
        self.epoch, self.step = (epoch, step) if step < self.steps_per_epoch else (epoch + 1, 0)

    def __len__(self) -> int:
        """Return the number of micro-batches in the next iteration."""
        return (self.steps_per_epoch - self.step) * self.accumulation

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, first = self.epoch, self.step
        order = self._order(epoch)
        for step in range(first, self.steps_per_epoch):
            for micro in range(self.accumulation):
                place = (micro * self.world_size + self.rank) * self.per_device_batch
                start = step * self.global_batch + place
                yield [self._key(epoch, order, clip) for clip in range(start, start + self.per_device_batch)]
        self.set_position(epoch + 1)

    def _order(self, epoch: int) -> Tensor:
        """Return the samples of an epoch in their order."""
        shuffled = torch.randperm(self.num_samples, generator=keyed_generator(self.seed, epoch))
        if self._classes is None:
            return shuffled
        share = -(-self.num_samples // len(self._classes))
        drawn = [_drawn(own, share, (self.seed, epoch, number)) for number, own in enumerate(self._classes)]
        return torch.stack(drawn, dim=1).flatten()[: self.num_samples][shuffled]

    def _key(self, epoch: int, order: Tensor, clip: int) -> Key:
        place, repeat = divmod(clip, self.repeats)
        return epoch * self.repeats + repeat, int(order[place])


def _by_label(labels: Sequence[int]) -> list[Tensor]:
    """Return the samples of each class that has any."""
    column = torch.tensor(labels)
    return [(column == label).nonzero().flatten() for label in column.unique().tolist()]


def _drawn(samples: Tensor, count: int, key: tuple[int, ...]) -> Tensor:
    """Return `count` samples, each as often as the others up to one."""
    orders = [
        samples[torch.randperm(len(samples), generator=keyed_generator(*key, turn))]
        for turn in range(-(-count // len(samples)))
    ]
    return torch.cat(orders)[:count]


class EvalBatches(Sampler[list[Key]]):
    """Batches of one rank: the samples in order are cut into batches, which the ranks take in turn.

    Each sample appears once over all ranks. Its batch does not depend on the number of ranks or on skipped batches, so
    model outputs are bitwise the same. A rank may have one batch less than another, or none.
    """

    def __init__(self, num_samples: int, batch_size: int, *, world_size: int = 1, rank: int = 0) -> None:
        _check_rank(rank, world_size)
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; expected at least 1")
        self.num_samples, self.batch_size, self.world_size, self.rank = num_samples, batch_size, world_size, rank
        self.skipped: frozenset[int] = frozenset()

    def skip(self, starts: Iterable[int]) -> None:
        """Skip the batches with first samples `starts`. All ranks must pass the same values."""
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
