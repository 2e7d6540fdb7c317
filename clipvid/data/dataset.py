"""Clips of the videos of a manifest, by key.

Letters: V views of a video (clips x crops), T frames, S pixels.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Literal, NotRequired, TypeAlias, TypedDict, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from clipvid import InputError
from clipvid.data.batches import Key
from clipvid.data.broken import Failure
from clipvid.data.feature_store import StoredFeatures
from clipvid.data.lists.samples import Sample, Stored
from clipvid.data.manifest import Manifest
from clipvid.data.reader import Backend, VideoError, open_video
from clipvid.data.sampling import FrameSampling, keyed_generator
from clipvid.data.transforms import Transform, apply_keyed

FrameOrder: TypeAlias = Literal["forward", "reversed", "shuffled", "single"]
FRAME_ORDERS = ("forward", "reversed", "shuffled", "single")
MAX_DRAWS = 100
Facts: TypeAlias = dict[str, str]


class VideoItem(TypedDict):
    """One sample of a `VideoDataset`.

    Attributes:
        frames: uint8 [T, 3, S, S] in training, [V, T, 3, S, S] in evaluation. Absent if there are stored features.
        features: Stored features, in place of `frames`.
        key: Key under which features of `frames` are to be stored.
        facts: Facts to be stored with them.
        label: Label of the video, or bool [K] for a list with several labels per video.
        index: Index of the video.
        epoch: Epoch of the key, in training only.
        readable: False if the video could not be read.
        varies: True if the frame rate varies while frames are drawn by number.
        failures: Videos that could not be read.
    """

    frames: NotRequired[Tensor]
    features: NotRequired[Tensor]
    key: NotRequired[str]
    facts: NotRequired[Facts]
    label: int | Tensor
    index: int
    epoch: NotRequired[int]
    readable: bool
    varies: bool
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
        random_frames: Draw the frames of evaluation clips as in training, keyed by seed, index and clip.
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
        random_frames: bool = False,
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
        self.random_frames = random_frames and not training
        self.mirror, self.fixed, self.views, self.features = mirror, fixed, views, features

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, key: Key) -> VideoItem:
        epoch, index = key
        return self._training_item(epoch, index) if self.training else self._evaluation_item(index)

    def _training_item(self, epoch: int, index: int) -> VideoItem:
        failures: list[Failure] = []
        for draw in range(MAX_DRAWS):
            key = [self.seed, epoch, index, *([draw] if draw else [])]
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
            item = {**clip, "index": shown, "epoch": epoch, "readable": True, "failures": failures}
            return cast(VideoItem, item)
        raise InputError(
            f"{MAX_DRAWS} videos in a row cannot be read, the last is {failures[-1].path} "
            f"({failures[-1].reason}); run clipvid check-videos on the list"
        )

    def _view(self, epoch: int, index: int) -> list[int]:
        """Return the key of one of the `views` clips of a video. They take turns, in each run from another one."""
        first = int(torch.randint(self.views, (), generator=keyed_generator(self.seed, index)))
        sample = self.manifest.samples[index]
        name = hashlib.sha256(json.dumps([sample.path, sample.start, sample.end]).encode()).digest()
        return [int.from_bytes(name[:8], "big"), (first + epoch) % self.views]

    def _training_clip(self, index: int, key: list[int], generator: torch.Generator) -> dict[str, Any]:
        """Return frames or stored features of one clip, its label, and whether its frame rate varies.

        Raises:
            VideoError: The video cannot be read.
        """
        sample = self.manifest.samples[index]
        may_mirror = sample.item is None and self._may_mirror(self._labels(sample))
        place, stored = self._stored(index, key, may_mirror)
        if stored is not None:
            features, facts = stored
            labels, clip = self._labels(sample), {"features": features}
        else:
            (frames,), labels, varies = self._read_clips(index, None if self.fixed else generator)
            frames = self.transforms[0](frames) if self.fixed else apply_keyed(self.transforms[0], frames, generator)
            may_mirror = self._may_mirror(labels)
            mirrored = may_mirror and bool(torch.rand((), generator=generator) < 0.5)
            facts = {"mirrored": str(mirrored), "varies": str(varies)}
            clip = {"frames": frames.flip(-1) if mirrored else frames} | _to_store(place, facts)
        if facts["mirrored"] == "True" and self.mirror is not None:
            labels = tuple(self.mirror[label] or 0 for label in labels)
        return clip | {"label": self._target(labels), "varies": facts["varies"] == "True"}

    def _evaluation_item(self, index: int) -> VideoItem:
        failures: list[Failure] = []
        labels = self._labels(self.manifest.samples[index])
        drawn = self.frame_order == "shuffled" or self.random_frames
        place, stored = self._stored(index, *([index] if drawn else []))
        if stored is not None:
            features, facts = stored
            varies, clip = facts["varies"] == "True", {"features": features}
        else:
            try:
                clips, labels, varies = self._read_clips(index, None)
            except VideoError as error:
                failures.append(self._failure(index, error))
                varies, place = False, None
                clips = [torch.zeros(self.sampling.num_frames, 3, 32, 32, dtype=torch.uint8)] * self.clips
            clip = {"frames": torch.stack([transform(clip) for clip in clips for transform in self.transforms])}
            clip |= _to_store(place, {"varies": str(varies)})
        item = {**clip, "label": self._target(labels), "index": index, "readable": not failures, "varies": varies}
        return cast(VideoItem, item | {"failures": failures})

    def _labels(self, sample: Sample) -> tuple[int, ...]:
        return (sample.label,) if sample.labels is None else sample.labels

    def _target(self, labels: tuple[int, ...]) -> int | Tensor:
        """Return the label of a video, or bool [K] for a list with several labels per video."""
        if not self.manifest.is_multi_label:
            return labels[0]
        target = torch.zeros(len(self.manifest.classes), dtype=torch.bool)
        target[list(labels)] = True
        return target

    def _may_mirror(self, labels: Sequence[int]) -> bool:
        return self.mirror is not None and all(self.mirror[label] is not None for label in labels)

    def _stored(self, index: int, *parts: Any) -> tuple[str | None, tuple[Tensor, Facts] | None]:
        """Return the key under which the features of a clip are stored, and the features if they are there."""
        sample = self.manifest.samples[index]
        if self.features is None or sample.item is not None:
            return None, None
        try:
            source = sample.media if isinstance(sample.media, Stored) else self.manifest.video(index)
            key = self.features.key(source, sample.start, sample.end, *parts)
        except (OSError, ValueError, RuntimeError):
            return None, None  # reading the video fails, with a message
        return key, None if key is None else self.features.store.read(key)

    def _failure(self, index: int, error: VideoError) -> Failure:
        return Failure(self.manifest.samples[index].path, error.reason or str(error))

    def _read_clips(self, index: int, generator: torch.Generator | None) -> tuple[list[Tensor], tuple[int, ...], bool]:
        """Return clips of video `index`, each uint8 [T, 3, H, W], its labels, and whether to warn about its frame rate.

        Raises:
            VideoError: The video cannot be read.
        """
        sample = self.manifest.samples[index]
        if sample.item is not None:
            frames, label = sample.item()
            needed, row = self._draw_frames(range(len(frames)), None, index, generator)
            return [frames[needed[rows]] for rows in row], (label,), False
        try:
            source = self.manifest.video(index)
        except (OSError, ValueError, RuntimeError) as error:
            raise VideoError(sample.path, f"it cannot be downloaded ({error})") from None
        with open_video(source, self.backend) as video:
            part = video.frames_between(sample.start, sample.end)
            times = video.frame_times(part) if self.sampling.by == "time" else None
            needed, row = self._draw_frames(part, times, index, generator)
            frames = video.read(needed).permute(0, 3, 1, 2)
            varies = self.sampling.ignores_time and video.has_varying_rate
        return [frames[rows] for rows in row], self._labels(sample), varies

    def _draw_frames(
        self, part: range, times: Sequence[float] | None, index: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Draw the frames of `part` for the clips of video `index`.

        Args:
            part: frame numbers to draw from.
            times: when each of them appears and when the last one ends; None if unknown or not used.
            index: number of the video.
            generator: for a random clip.

        Returns:
            Sorted frame numbers int64 [U] without repeats, and positions int64 [clips, T] in them.
        """
        drawn = []
        for clip in range(self.clips):
            drawing = keyed_generator(self.seed, index, clip) if self.random_frames else generator
            drawn.append(self.sampling.indices(len(part), times, generator=drawing, clip=clip, num_clips=self.clips))
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


def _to_store(key: str | None, facts: Facts) -> dict[str, Any]:
    return {} if key is None else {"key": key, "facts": facts}
