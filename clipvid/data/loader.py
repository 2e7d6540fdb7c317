"""From a manifest to batches: the dataset, the order of its samples over processes, and the loader.

Letters: B clips in a batch, V views of a video (clips x crops), T frames, S pixels. Samples are asked for by
(epoch, index), so workers keep no state and any of them gives the same sample.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeAlias, TypedDict

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from clipvid.data.manifest import Manifest
from clipvid.data.reader import Backend, open_video
from clipvid.data.sampling import FrameSampling, keyed_generator
from clipvid.data.transforms import Transform, apply_keyed

Key: TypeAlias = tuple[int, int]
FrameOrder: TypeAlias = Literal["forward", "reversed", "shuffled", "single"]
FRAME_ORDERS = ("forward", "reversed", "shuffled", "single")


class VideoItem(TypedDict):
    """One sample: frames uint8 [T, 3, S, S] in training, [V, T, 3, S, S] in evaluation; label; index."""

    frames: Tensor
    label: int
    index: int


class VideoDataset(Dataset[VideoItem]):
    """Clips of the videos of a manifest, by key (epoch, index).

    In training, one random clip: frames and augmentation are drawn from (seed, epoch, index). In evaluation,
    `clips` x `crops` fixed views, clip by clip, of which every frame needed is read once per video; the epoch
    plays no part.

    Args:
        manifest: the videos.
        sampling: how a clip is drawn from a video.
        transform: uint8 [T, 3, H, W] -> uint8 [T, 3, S, S]; for several crops, one transform per crop.
        seed: the run's seed.
        training: random clips, or fixed views.
        clips: evaluation clips per video.
        crops: evaluation crops per clip.
        frame_order: evaluation on clips with time destroyed: `reversed`, `shuffled` (keyed by seed, index and
            clip), or `single` (the first frame repeated).
        backend: video reader, see `open_video`.

    Raises `VideoError` where a video cannot be read.
    """

    def __init__(
        self,
        manifest: Manifest,
        sampling: FrameSampling,
        transform: Transform | Sequence[Transform],
        *,
        seed: int,
        training: bool,
        clips: int = 1,
        crops: int = 1,
        frame_order: FrameOrder = "forward",
        backend: Backend = "auto",
    ) -> None:
        self.transforms = list(transform) if isinstance(transform, Sequence) else [transform]
        if len(self.transforms) != crops:
            raise ValueError(f"{len(self.transforms)} transforms given for {crops} crops; expected one per crop")
        if clips < 1 or (training and (clips, crops) != (1, 1)):
            raise ValueError(f"clips {clips}, crops {crops}: expected at least 1, and exactly 1 in training")
        if frame_order not in FRAME_ORDERS or (training and frame_order != "forward"):
            raise ValueError(f"frame_order is {frame_order!r}; expected one of {FRAME_ORDERS}, forward in training")
        self.manifest, self.sampling, self.seed, self.training = manifest, sampling, seed, training
        self.clips, self.crops, self.frame_order, self.backend = clips, crops, frame_order, backend

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, key: Key) -> VideoItem:
        epoch, index = key
        if self.training:
            generator = keyed_generator(self.seed, epoch, index)
            clip = self._read_clips(index, generator)[0]
            frames = apply_keyed(self.transforms[0], clip, generator)
        else:
            views = [transform(clip) for clip in self._read_clips(index, None) for transform in self.transforms]
            frames = torch.stack(views)
        return {"frames": frames, "label": self.manifest.samples[index].label, "index": index}

    def _read_clips(self, index: int, generator: torch.Generator | None) -> list[Tensor]:
        """Clips of video `index`, each uint8 [T, 3, H, W].

        The only place that touches a video: what is to happen with one that cannot be read belongs here.
        """
        with open_video(self.manifest.video_path(index), self.backend) as video:
            wanted = torch.stack(
                [
                    self._ordered(
                        self.sampling.indices(len(video), generator=generator, clip=clip, num_clips=self.clips),
                        index,
                        clip,
                    )
                    for clip in range(self.clips)
                ]
            )
            needed, row = wanted.unique(return_inverse=True)
            frames = video.read(needed).permute(0, 3, 1, 2)
        return [frames[rows] for rows in row]

    def _ordered(self, indices: Tensor, index: int, clip: int) -> Tensor:
        if self.frame_order == "reversed":
            return indices.flip(0)
        if self.frame_order == "shuffled":
            return indices[torch.randperm(len(indices), generator=keyed_generator(self.seed, index, clip))]
        if self.frame_order == "single":
            return indices[:1].expand(len(indices))
        return indices


class TrainBatches(Sampler[list[Key]]):
    """Micro-batches of one rank, an epoch per iteration, each epoch in an order keyed by (seed, epoch).

    A step takes G = per_device_batch x world_size x accumulation clips, perm[step * G : (step + 1) * G], and
    micro-batch j of rank r is its slice of per_device_batch clips at (j * world_size + r) * per_device_batch: the
    clips of an optimiser step depend on G alone. The last, partial global batch of an epoch is dropped.

    Iterating to the end of an epoch moves on to the next. `set_position` goes to any (epoch, step), where a
    checkpoint was taken; the loader draws batches ahead, so the trainer counts its steps itself.

    Args:
        num_samples: videos in the data set.
        per_device_batch: clips per micro-batch.
        seed: the run's seed.
        world_size: processes.
        rank: this one.
        accumulation: micro-batches per optimiser step.
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
        epoch: int = 0,
        step: int = 0,
    ) -> None:
        _check_rank(rank, world_size)
        if per_device_batch < 1 or accumulation < 1:
            raise ValueError(f"per_device_batch {per_device_batch} and accumulation {accumulation} must be at least 1")
        self.global_batch = per_device_batch * world_size * accumulation
        if num_samples < self.global_batch:
            raise ValueError(
                f"{num_samples} training videos do not fill one global batch of {self.global_batch} "
                f"(per_device_batch {per_device_batch} x world_size {world_size} x accumulation {accumulation}); "
                "lower per_device_batch or accumulation, or use fewer processes"
            )
        self.num_samples, self.per_device_batch, self.seed = num_samples, per_device_batch, seed
        self.world_size, self.rank, self.accumulation = world_size, rank, accumulation
        self.set_position(epoch, step)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in an epoch."""
        return self.num_samples // self.global_batch

    def set_position(self, epoch: int, step: int = 0) -> None:
        """Begin the next iteration at optimiser step `step` of `epoch`; its end is the start of the next epoch."""
        if epoch < 0 or not 0 <= step <= self.steps_per_epoch:
            raise ValueError(f"epoch {epoch}, step {step}: expected epoch >= 0, step in 0..{self.steps_per_epoch}")
        self.epoch, self.step = (epoch, step) if step < self.steps_per_epoch else (epoch + 1, 0)

    def __len__(self) -> int:
        """Micro-batches that the next iteration gives."""
        return (self.steps_per_epoch - self.step) * self.accumulation

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, first = self.epoch, self.step
        order = torch.randperm(self.num_samples, generator=keyed_generator(self.seed, epoch)).tolist()
        for step in range(first, self.steps_per_epoch):
            for micro in range(self.accumulation):
                place = (micro * self.world_size + self.rank) * self.per_device_batch
                start = step * self.global_batch + place
                yield [(epoch, index) for index in order[start : start + self.per_device_batch]]
        self.set_position(epoch + 1)


class EvalBatches(Sampler[list[Key]]):
    """Batches of rank r of w over samples r, r + w, r + 2w, ...: each sample once over all ranks, none repeated.

    A rank may have fewer batches than another, or none.
    """

    def __init__(self, num_samples: int, batch_size: int, *, world_size: int = 1, rank: int = 0) -> None:
        _check_rank(rank, world_size)
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1")
        self.indices, self.batch_size = range(rank, num_samples, world_size), batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for start in range(0, len(self.indices), self.batch_size):
            yield [(0, index) for index in self.indices[start : start + self.batch_size]]


def build_loader(dataset: Dataset[Any], batch_sampler: TrainBatches | EvalBatches, num_workers: int) -> DataLoader[Any]:
    """Loader of batches {frames: uint8 [B, T, 3, S, S] or [B, V, T, 3, S, S], label: int64 [B], index: int64 [B]}.

    Workers stay alive from epoch to epoch and compute in one thread each; the samples do not depend on their
    number. Ranks are already split by the batch sampler: the loader is not for `accelerator.prepare`.
    """
    return DataLoader(
        dataset,
        batch_sampler=batch_sampler,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        prefetch_factor=2 if num_workers > 0 else None,
        worker_init_fn=_single_thread,
        pin_memory=torch.cuda.is_available(),
        # The seeds that a loader draws for its workers would otherwise move torch's global state.
        generator=keyed_generator(0),
    )


def _single_thread(worker: int) -> None:
    torch.set_num_threads(1)


def _check_rank(rank: int, world_size: int) -> None:
    if not 0 <= rank < world_size:
        raise ValueError(f"rank is {rank} of world_size {world_size}; expected 0 <= rank < world_size")
