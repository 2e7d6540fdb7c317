"""Dataset and loader of clips from a manifest.

Shapes: B clips in a batch, V views of a video (clips x crops), T frames, S pixels. Samples are requested by (epoch,
index), so workers keep no state and all of them return the same sample.
"""

import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NotRequired, TypeAlias, TypedDict

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clipvid import InputError
from clipvid.data.batches import EvalBatches, Key, TrainBatches
from clipvid.data.broken import BadVideos, Failure
from clipvid.data.collate import collate
from clipvid.data.feature_store import StoredFeatures
from clipvid.data.manifest import Manifest
from clipvid.data.reader import Backend, VideoError, open_video
from clipvid.data.sampling import FrameSampling, keyed_generator
from clipvid.data.transforms import Transform, apply_keyed

FrameOrder: TypeAlias = Literal["forward", "reversed", "shuffled", "single"]
FRAME_ORDERS = ("forward", "reversed", "shuffled", "single")
MAX_DRAWS = 100


class VideoItem(TypedDict):
    """One sample of a `VideoDataset`.

    frames: uint8 [T, 3, S, S] in training, [V, T, 3, S, S] in evaluation. features: stored features, which take the
    place of `frames`. key: where features of `frames` are to be stored. mirrored: the clip is mirrored.
    label, index: of the video shown. epoch: of the key, in training. readable: False for a black clip in place of an
    unreadable video. failures: videos that could not be read.
    """

    frames: NotRequired[Tensor]
    features: NotRequired[Tensor]
    key: NotRequired[str]
    mirrored: NotRequired[bool]
    label: int
    index: int
    epoch: NotRequired[int]
    readable: bool
    failures: list[Failure]


class VideoDataset(Dataset[VideoItem]):
    """Clips of the videos of a manifest, by key (epoch, index).

    In training, an item is one random clip, with frames and augmentation drawn from (seed, epoch, index). An unreadable
    video is replaced by another one, drawn from (seed, epoch, index, number of the draw).

    In evaluation, an item has `clips` x `crops` fixed views, ordered by clip. Each required frame is read once per
    video, and the epoch is ignored. An unreadable video is black and has `readable=False`.

    Args:
        manifest: The videos.
        sampling: Sampling of a clip from a video.
        transform: uint8 [T, 3, H, W] -> uint8 [T, 3, S, S]. With several crops, one transform per crop.
        seed: Seed of the run.
        training: Random clips instead of fixed views.
        clips: Evaluation clips per video.
        crops: Evaluation crops per clip.
        frame_order: Order of frames in evaluation: `forward`, `reversed`, `shuffled` (keyed by seed, index and clip),
            or `single` (the first frame repeated).
        mirror: For each class, the class of its mirrored clips, or None if it must not be mirrored. Half of the other
            training clips are mirrored. See `clipvid.data.lists.classes.mirror_map`.
        backend: Video reader, see `open_video`.
        fixed: in training, show the same clip of a video in every epoch, as an evaluation does.
        views: in training, draw from this many clips of each video in turn. They depend on the path of the video
            alone, not on the run's seed. 0 for new clips in every epoch.
        features: stored features, which are returned in place of the frames they were computed from.
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
        mirror: Sequence[int | None] | None = None,
        backend: Backend = "auto",
        fixed: bool = False,
        views: int = 0,
        features: StoredFeatures | None = None,
    ) -> None:
        self.transforms = list(transform) if isinstance(transform, Sequence) else [transform]
        if len(self.transforms) != crops:
            raise InputError(f"{len(self.transforms)} transforms given for {crops} crops; expected one per crop")
        if clips < 1 or (training and (clips, crops) != (1, 1)):
            raise InputError(f"clips {clips}, crops {crops}: expected at least 1, and exactly 1 in training")
        if frame_order not in FRAME_ORDERS or (training and frame_order != "forward"):
            raise InputError(f"frame_order is {frame_order!r}; expected one of {FRAME_ORDERS}, forward in training")
        self.manifest, self.sampling, self.seed, self.training = manifest, sampling, seed, training
        self.clips, self.crops, self.frame_order, self.backend = clips, crops, frame_order, backend
        self.mirror, self.fixed, self.views, self.features = mirror, fixed, views, features

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, key: Key) -> VideoItem:
        epoch, index = key
        return self._training_item(epoch, index) if self.training else self._evaluation_item(index)

    def _training_item(self, epoch: int, index: int) -> VideoItem:
        failures: list[Failure] = []
        for draw in range(MAX_DRAWS):
            key: list[int] = [self.seed, epoch, index, *([draw] if draw else [])]
            generator = keyed_generator(*key)
            shown = int(torch.randint(len(self), (), generator=generator)) if draw else index
            if self.fixed:
                key = []
            elif self.views:
                key = self._view(epoch, shown)
                generator = keyed_generator(*key)
            try:
                clip = self._training_clip(shown, key, generator)
            except VideoError as error:
                failures.append(self._failure(shown, error))
                continue
            return {**clip, "index": shown, "epoch": epoch, "readable": True, "failures": failures}  # type: ignore[typeddict-item]
        raise InputError(
            f"{MAX_DRAWS} videos in a row cannot be read, the last is {failures[-1].path} "
            f"({failures[-1].reason}); run clipvid check-videos on the list"
        )

    def _view(self, epoch: int, index: int) -> list[int]:
        """Return the key of one of the `views` clips of a video; they take turns, in each run from another one."""
        first = int(torch.randint(self.views, (), generator=keyed_generator(self.seed, index)))
        sample = self.manifest.samples[index]
        name = hashlib.sha256(json.dumps([sample.path, sample.start, sample.end]).encode()).digest()
        return [int.from_bytes(name[:8], "big"), (first + epoch) % self.views]

    def _training_clip(self, index: int, key: list[int], generator: torch.Generator) -> dict[str, Any]:
        """Return frames or stored features of one clip, and its label.

        Raises:
            VideoError: the video cannot be read.
        """
        sample = self.manifest.samples[index]
        may_mirror = self.mirror is not None and sample.item is None and self.mirror[sample.label] is not None
        place, stored = self._stored(index, key, may_mirror)
        if stored is not None:
            features, facts = stored
            mirrored, label = facts["mirrored"] == "True", sample.label
            clip: dict[str, Any] = {"features": features}
        else:
            (frames,), label = self._read_clips(index, None if self.fixed else generator)
            frames = self.transforms[0](frames) if self.fixed else apply_keyed(self.transforms[0], frames, generator)
            may_mirror = self.mirror is not None and self.mirror[label] is not None
            mirrored = may_mirror and bool(torch.rand((), generator=generator) < 0.5)
            clip = {"frames": frames.flip(-1) if mirrored else frames}
            if place is not None:
                clip |= {"key": place, "mirrored": mirrored}
        if mirrored and self.mirror is not None:
            label = self.mirror[label] or 0
        return clip | {"label": label}

    def _evaluation_item(self, index: int) -> VideoItem:
        failures: list[Failure] = []
        label = self.manifest.samples[index].label
        place, stored = self._stored(index, *([index] if self.frame_order == "shuffled" else []))
        clip: dict[str, Any]
        if stored is not None:
            clip = {"features": stored[0]}
        else:
            try:
                clips, label = self._read_clips(index, None)
            except VideoError as error:
                failures.append(self._failure(index, error))
                clips = [torch.zeros(self.sampling.num_frames, 3, 32, 32, dtype=torch.uint8)] * self.clips
            clip = {"frames": torch.stack([transform(clip) for clip in clips for transform in self.transforms])}
            if place is not None and not failures:
                clip["key"] = place
        return {**clip, "label": label, "index": index, "readable": not failures, "failures": failures}  # type: ignore[typeddict-item]

    def _stored(self, index: int, *parts: Any) -> tuple[str | None, tuple[Tensor, dict[str, str]] | None]:
        """Return where the features of a clip are stored, and the features if they are there."""
        sample = self.manifest.samples[index]
        if self.features is None or sample.item is not None:
            return None, None
        try:
            key = self.features.key(self.manifest.video(index), sample.start, sample.end, *parts)
        except (OSError, ValueError, RuntimeError):
            return None, None  # reading it fails, with a message
        return key, None if key is None else self.features.store.read(key)

    def _failure(self, index: int, error: VideoError) -> Failure:
        return Failure(self.manifest.samples[index].path, error.reason or str(error))

    def _read_clips(self, index: int, generator: torch.Generator | None) -> tuple[list[Tensor], int]:
        """Return clips of video `index`, each uint8 [T, 3, H, W], and its label.

        Raises:
            VideoError: The video cannot be read.
        """
        sample = self.manifest.samples[index]
        if sample.item is not None:
            frames, label = sample.item()
            needed, row = self._draw_frames(range(len(frames)), index, generator)
            return [frames[needed[rows]] for rows in row], label
        try:
            source = self.manifest.video(index)
        except (OSError, ValueError, RuntimeError) as error:
            raise VideoError(sample.path, f"it cannot be downloaded ({error})") from None
        with open_video(source, self.backend) as video:
            part = video.frames_between(sample.start, sample.end)
            needed, row = self._draw_frames(part, index, generator)
            frames = video.read(needed).permute(0, 3, 1, 2)
        return [frames[rows] for rows in row], sample.label

    def _draw_frames(self, part: range, index: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Draw the frames of `part` for the clips of video `index`.

        Returns:
            Sorted frame numbers int64 [U] without repeats, and positions int64 [clips, T] in them.
        """
        drawn = [
            self.sampling.indices(len(part), generator=generator, clip=clip, num_clips=self.clips)
            for clip in range(self.clips)
        ]
        shown = part.start + torch.stack([self._ordered(frames, index, i) for i, frames in enumerate(drawn)])
        needed, row = shown.unique(return_inverse=True)
        return needed, row

    def _ordered(self, indices: Tensor, index: int, clip: int) -> Tensor:
        if self.frame_order == "reversed":
            return indices.flip(0)
        if self.frame_order == "shuffled":
            return indices[torch.randperm(len(indices), generator=keyed_generator(self.seed, index, clip))]
        if self.frame_order == "single":
            return indices[:1].expand(len(indices))
        return indices


class ReportingLoader(DataLoader[Any]):
    """Loader that passes the `failures` of each batch to `bad_videos` when the batch is consumed."""

    bad_videos: BadVideos

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            self.bad_videos.add(batch.pop("failures", []))
            yield batch


def build_loader(
    dataset: Dataset[Any],
    batch_sampler: TrainBatches | EvalBatches,
    num_workers: int,
    bad_videos: BadVideos | None = None,
) -> DataLoader[Any]:
    """Build a loader of batches with `frames`, `label` int64 [B], `index` int64 [B] and `readable` bool [B].

    Frames are uint8 [B, T, 3, S, S] or [B, V, T, 3, S, S]. Training batches also have `epoch` int64 [B] of the clips'
    keys (see `TrainBatches`).

    Workers persist over epochs and compute in one thread each. The samples do not depend on their number. The batch
    sampler already splits the ranks, so do not pass the loader to `accelerator.prepare`. Unreadable videos are reported
    to `bad_videos`, by default only on standard error.
    """
    loader = ReportingLoader(
        dataset,
        batch_sampler=batch_sampler,
        num_workers=num_workers,
        collate_fn=collate,
        persistent_workers=num_workers > 0,
        prefetch_factor=2 if num_workers > 0 else None,
        worker_init_fn=_start_worker,
        pin_memory=torch.cuda.is_available(),
        # Without a generator, the seeds of the workers would advance torch's global state.
        generator=keyed_generator(0),
    )
    loader.bad_videos = bad_videos or BadVideos()
    return loader


def _start_worker(worker: int) -> None:
    """Use one thread, and leave signals to the parent process.

    A scheduler sends its signals to all processes, but the current step still needs its batch. Workers keep the default
    on systems that cannot identify the sender of a signal, such as macOS and Windows.
    """
    torch.set_num_threads(1)
    if sys.platform != "linux" or not hasattr(signal, "sigwaitinfo"):
        return
    parent, signals = multiprocessing.parent_process(), {signal.SIGTERM, signal.SIGUSR1}
    if parent is not None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        threading.Thread(target=_obey, args=(parent.pid, signals), daemon=True).start()


def _obey(parent: int | None, signals: set[signal.Signals]) -> None:
    """Exit on SIGTERM from the parent process only."""
    if sys.platform == "linux":
        while True:
            info = signal.sigwaitinfo(signals)
            if info.si_signo == signal.SIGTERM and info.si_pid == parent:
                os._exit(0)
