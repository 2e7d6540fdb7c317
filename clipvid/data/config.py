"""The `data` part of a run's config, and the manifests and loaders that it becomes."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from accelerate import Accelerator
from torch.utils.data import DataLoader

from clipvid.data.broken import BadVideos
from clipvid.data.lists.classes import mirror_map
from clipvid.data.loader import EvalBatches, FrameOrder, VideoDataset, build_loader
from clipvid.data.manifest import ClassInfo, Manifest, load_manifest
from clipvid.data.preprocessing import Preprocessing
from clipvid.data.sampling import FrameSampling
from clipvid.data.synthetic.world import WorldConfig, build_world
from clipvid.data.transforms import eval_transforms, train_transform
from clipvid.registry import Choice

BAD_VIDEOS = "bad_videos.jsonl"


class ClipShape(Protocol):
    """Frames per clip and side of a frame in pixels, as a model has them."""

    @property
    def num_frames(self) -> int: ...

    @property
    def image_size(self) -> int: ...


@dataclass(frozen=True)
class AugmentConfig:
    """How training clips are varied, the same way for all frames of a clip; see `clipvid.data.transforms`.

    flip: mirror half of the clips. A class whose name tells left from right, or clockwise from anticlockwise, takes the
        label of its opposite, and is never mirrored where there is none. label_map_flip: class names that a mirror
        exchanges, in place of what the names say.
    """

    scale: tuple[float, float] = (0.8, 1.0)
    flip: bool = False
    label_map_flip: dict[str, str] | None = None
    rand_augment: int = 0
    color_jitter: float = 0.0
    grayscale: float = 0.0
    random_erasing: float = 0.0


@dataclass(frozen=True)
class DataConfig:
    """Where videos are and how clips are taken from them.

    root: folder that paths are relative to.
    train, val: lists `path label`; manifests in CSV, JSON, JSON lines or Parquet; folders with a folder per class;
        `shards-{000..009}.tar`; or `{name: datasets, path: ...}`. See `clipvid.data.manifest.load_manifest`.
    classes: names of the classes: one per line (.txt), CSV with `id,name`, or as data sets publish them; null for the
        names that `train` gives.
    allow_outside_root: let lists name files outside of `root`. check_files: look that every file exists.
    world: a synthetic world to build in `root` first.
    group_pattern: regular expression whose first group, matched on a path, names the video's group (a person, ...).
    protocol: `holdout` trains on train and evaluates on val; `leave_one_group_out` pools both and holds out each
        group in turn.
    sampling, stride: `uniform` segments over the video, or a `dense` window with `stride` frames between.
    repeats: clips of each video in an epoch of training, side by side (repeated sampling).
    resize: `shortest_center` or `squash`, for evaluation. test_clips, test_crops: views per video in evaluation.
    max_bad_fraction: share of the training videos that may be unreadable before the run stops; up to it, others are
        shown in their place. In evaluation an unreadable video counts as wrong.
    """

    root: str = "data"
    train: Choice = "train.csv"
    val: Choice = "val.csv"
    classes: str | None = "classes.csv"
    allow_outside_root: bool = False
    check_files: bool = True
    world: WorldConfig | None = None
    group_pattern: str | None = None
    protocol: Literal["holdout", "leave_one_group_out"] = "holdout"
    sampling: Literal["uniform", "dense"] = "uniform"
    stride: int = 1
    repeats: int = 1
    resize: Literal["shortest_center", "squash"] = "shortest_center"
    test_clips: int = 1
    test_crops: int = 1
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    num_workers: int = 2
    max_bad_fraction: float = 0.01

    @property
    def preprocessing(self) -> Preprocessing:
        """How clips are taken for evaluation."""
        return Preprocessing(self.sampling, self.stride, self.resize)


def load_split(config: DataConfig, split: Literal["train", "val"]) -> Manifest:
    """The manifest of one split; builds the synthetic world first where the config asks for one."""
    if config.world is not None:
        build_world(config.world, config.root)
    source: Choice = getattr(config, split)
    classes: str | tuple[ClassInfo, ...] | None = config.classes
    if classes is None and split != "train":
        with contextlib.suppress(FileNotFoundError):  # evaluation alone needs no training set
            outside = config.allow_outside_root
            train = load_manifest(config.root, config.train, None, allow_outside_root=outside, check_files=False)
            classes = train.classes
    return load_manifest(
        config.root,
        source,
        classes,
        config.group_pattern,
        allow_outside_root=config.allow_outside_root,
        check_files=config.check_files,
    )


def train_dataset(data: DataConfig, shape: ClipShape, manifest: Manifest, seed: int) -> VideoDataset:
    """Training clips, varied as the config says."""
    options = dataclasses.asdict(data.augment)
    flip, exchanged = options.pop("flip"), options.pop("label_map_flip")
    return VideoDataset(
        manifest,
        _sampling(data, shape.num_frames),
        train_transform(shape.image_size, **options),
        seed=seed,
        training=True,
        mirror=mirror_map(manifest.class_names, exchanged) if flip else None,
    )


def eval_loader(
    data: DataConfig,
    shape: ClipShape,
    manifest: Manifest,
    accelerator: Accelerator,
    batch_size: int,
    frame_order: FrameOrder = "forward",
    output_dir: Path | None = None,
) -> DataLoader:
    """Every video of the manifest once over all processes, `test_clips x test_crops` views each.

    Unreadable ones are said, and written to `output_dir`/bad_videos.jsonl where there is one.
    """
    dataset = VideoDataset(
        manifest,
        _sampling(data, shape.num_frames),
        eval_transforms(shape.image_size, data.resize, data.test_crops),
        seed=0,
        training=False,
        clips=data.test_clips,
        crops=data.test_crops,
        frame_order=frame_order,
    )
    batches = EvalBatches(
        len(manifest), batch_size, rank=accelerator.process_index, world_size=accelerator.num_processes
    )
    bad = BadVideos("val", len(manifest), file=None if output_dir is None else output_dir / BAD_VIDEOS)
    return build_loader(dataset, batches, data.num_workers, bad)


def _sampling(data: DataConfig, num_frames: int) -> FrameSampling:
    return FrameSampling(data.sampling, num_frames, data.stride)
