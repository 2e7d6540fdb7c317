"""Manifests and loaders of the splits in a `DataConfig`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from accelerate import Accelerator
from torch.utils.data import DataLoader

from clipvid.data.batches import EvalBatches
from clipvid.data.broken import BadVideos
from clipvid.data.config import DataConfig
from clipvid.data.dataset import FrameOrder, VideoDataset
from clipvid.data.drawn_split import draw_split
from clipvid.data.feature_store import StoredFeatures
from clipvid.data.leaks import check_splits
from clipvid.data.lists.classes import mirror_map
from clipvid.data.loader import build_loader
from clipvid.data.manifest import ClassInfo, Manifest, check_same_kind, load_manifest
from clipvid.data.sampling import FrameSampling
from clipvid.data.synthetic.world import build_world
from clipvid.data.transforms import eval_transform, eval_transforms, train_transform
from clipvid.distributed import by_main_process
from clipvid.registry import Choice

BAD_VIDEOS = "bad_videos.jsonl"
FeatureRecipe: TypeAlias = Callable[..., StoredFeatures]


class ClipShape(Protocol):
    """Number of frames per clip and side of a frame in pixels, as attributes of a model."""

    @property
    def num_frames(self) -> int:
        """Number of frames T per clip."""

    @property
    def image_size(self) -> int:
        """Side S of the square frames, in pixels."""


def load_split(config: DataConfig, split: Literal["train", "val"]) -> Manifest:
    """Return the manifest of one split. Build the synthetic world first if the config has one.

    The default list of classes is used if it exists. Otherwise, and for null, classes are the labels of `train`.
    """
    if config.world is not None:
        build_world(config.world, config.root)
    if config.val is None:
        return load_splits(config)[split != "train"]
    classes: str | tuple[ClassInfo, ...] | None = _class_list(config)
    if classes is None and split != "train":
        with contextlib.suppress(FileNotFoundError):  # evaluation works without a training set
            outside = config.allow_outside_root
            train = load_manifest(
                config.root, config.train, None, allow_outside_root=outside, check_files=False, split="train"
            )
            classes = train.classes
    return _load(config, split, classes)


def load_splits(config: DataConfig) -> tuple[Manifest, Manifest]:
    """Return the manifests of `train` and `val` as `load_split` does, and read each list once."""
    if config.val is None:
        return draw_split(_load(config, "train", _class_list(config)), config)
    train, classes = load_split(config, "train"), _class_list(config)
    val = _load(config, "val", train.classes if classes is None else classes)
    check_same_kind(train, val)
    return train, val


def check_leaks(config: DataConfig, first: Manifest, second: Manifest, accelerator: Accelerator) -> None:
    """Refuse videos in both manifests as `data.check_leaks` says. The main process looks for them, others wait.

    Raises:
        ManifestError: Names some of the videos.
    """

    def check() -> None:
        check_splits(first, second, config.check_leaks, follow_links=config.check_files)

    by_main_process(accelerator, check)


def _class_list(config: DataConfig) -> str | None:
    """Return the list of classes; None if they are the labels of `train`."""
    classes = config.classes
    is_missing = classes is not None and classes == DataConfig.classes and not (Path(config.root) / classes).exists()
    return None if is_missing else classes


def _load(config: DataConfig, split: Literal["train", "val"], classes: str | tuple[ClassInfo, ...] | None) -> Manifest:
    source: Choice = getattr(config, split)
    return load_manifest(
        config.root,
        source,
        classes,
        config.group_pattern,
        allow_outside_root=config.allow_outside_root,
        check_files=config.check_files,
        split=split,
    )


def train_dataset(
    data: DataConfig,
    shape: ClipShape,
    manifest: Manifest,
    seed: int,
    views: int = 0,
    features: FeatureRecipe | None = None,
) -> VideoDataset:
    """Return training clips, varied as the config says.

    Args:
        views: random clips of each video that take turns; 0 for new ones in every epoch.
        features: returns the stored features of clips made by a recipe.
    """
    sampling, augment = _sampling(data, shape.num_frames), data.augment
    options = dataclasses.asdict(augment)
    if augment.fixed:
        transform, mirror = eval_transform(shape.image_size, data.resize), None
    else:
        flip, exchanged, _ = (options.pop(name) for name in ("flip", "label_map_flip", "fixed"))
        transform = train_transform(shape.image_size, **options)
        mirror = mirror_map(manifest.class_names, exchanged) if flip else None
    varied = data.resize if augment.fixed else options
    recipe = ["training", dataclasses.asdict(sampling), shape.image_size, varied]
    return VideoDataset(
        manifest,
        sampling,
        transform,
        seed=seed,
        training=True,
        mirror=mirror,
        fixed=augment.fixed,
        views=views,
        features=None if features is None else features(*recipe),
    )


def eval_loader(
    data: DataConfig,
    shape: ClipShape,
    manifest: Manifest,
    accelerator: Accelerator,
    batch_size: int,
    frame_order: FrameOrder = "forward",
    output_dir: Path | None = None,
    features: FeatureRecipe | None = None,
) -> DataLoader:
    """Return every video of the manifest once over all processes, `test_clips x test_crops` views each.

    Unreadable ones are logged, and written to `output_dir`/bad_videos.jsonl if that is given.

    Args:
        features: returns the stored features of clips made by a recipe.
    """
    sampling = _sampling(data, shape.num_frames)
    views: list[Any] = [data.test_clips, data.test_crops]
    views += [] if data.test_sampling == "fixed" else [data.test_sampling]
    recipe = ["evaluation", dataclasses.asdict(sampling), shape.image_size, data.resize, views, frame_order]
    dataset = VideoDataset(
        manifest,
        sampling,
        eval_transforms(shape.image_size, data.resize, data.test_crops),
        seed=0,
        training=False,
        clips=data.test_clips,
        crops=data.test_crops,
        random_frames=data.test_sampling == "random",
        frame_order=frame_order,
        features=None if features is None else features(*recipe),
    )
    batches = EvalBatches(
        len(manifest), batch_size, rank=accelerator.process_index, world_size=accelerator.num_processes
    )
    bad = BadVideos("val", len(manifest), file=None if output_dir is None else output_dir / BAD_VIDEOS)
    return build_loader(dataset, batches, data.num_workers, bad)


def _sampling(data: DataConfig, num_frames: int) -> FrameSampling:
    return data.preprocessing.frame_sampling(num_frames)
