"""Decides whether a run keeps the features of the frozen part of its model, and opens the cache."""

from __future__ import annotations

import shutil

from accelerate import Accelerator

from clipvid import InputError
from clipvid.data.config import DataConfig
from clipvid.data.feature_store import FeatureStore
from clipvid.distributed import is_sharded
from clipvid.files import cache_folder
from clipvid.model.feature_cache import FeatureCache
from clipvid.model.video_clip import VideoCLIP
from clipvid.training.config import TrainingConfig

GIB = 2**30
AUTO_LIMIT = 10 * GIB


def clips_recur(training: TrainingConfig, data: DataConfig) -> bool:
    """Return True if training shows the same clips again."""
    return training.cache_views > 0 or data.augment.fixed


def open_features(
    training: TrainingConfig, data: DataConfig, model: VideoCLIP, accelerator: Accelerator, announce: bool = True
) -> FeatureCache | None:
    """Return the cache of a run; None if it is off, or if `auto` finds nothing worth keeping.

    Args:
        training: Settings of the run.
        data: Settings of its videos.
        model: The model.
        accelerator: The Accelerator.
        announce: Print the place and size of the cache, or why `cache_views` has no effect on it.

    Raises:
        InputError: `cache_features` is a number, and nothing can be kept.
    """
    choice = training.cache_features
    depth = None if choice == "off" else model.frozen_depth()
    obstacle = "it is off" if choice == "off" else _obstacle(training, data, model, depth, accelerator)
    if obstacle is not None and choice not in ("auto", "off"):
        raise InputError(f"training.cache_features={choice:g}: {obstacle}. Set it to auto or off")
    recurs = clips_recur(training, data) or training.epochs > training.eval_epochs
    if obstacle is None and choice == "auto" and (depth == 0 or not recurs):
        obstacle = "the first block has a trained part, and the embedding alone is as quick as reading its output"
    if obstacle is not None:
        if training.cache_views and announce:
            accelerator.print(
                f"training.cache_views={training.cache_views} lets clips take turns, but training.cache_features keeps "
                f"no features: {obstacle}"
            )
        return None
    assert depth is not None
    folder = cache_folder() / "features"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        if choice != "auto":
            raise InputError(f"{folder} cannot be used ({error}); set CLIPVID_CACHE to another folder") from None
        accelerator.print(f"features are not kept ({error}); training continues without")
        return None
    limit = min(AUTO_LIMIT, free // 2) if choice == "auto" else int(float(choice) * GIB)
    blocks = len(model.encoder.layers)
    part = "the image tower" if depth > blocks else f"blocks 1 to {depth} of {blocks}"
    if announce:
        accelerator.print(f"the output of {part} is kept in {folder}, up to {limit / GIB:.1f} GiB")
    return FeatureCache(FeatureStore(folder, limit), model, depth, accelerator)


def _obstacle(
    training: TrainingConfig, data: DataConfig, model: VideoCLIP, depth: int | None, accelerator: Accelerator
) -> str | None:
    """Return why nothing can be kept; None if nothing prevents it."""
    if depth is None:
        return "the embedding of the image tower is trained, or draws at random in training"
    if is_sharded(model) or accelerator.is_fsdp2:
        return "FSDP spreads the model over processes, which would have to compute the same clips together"
    if training.mixup or training.cutmix:
        return "training.mixup and training.cutmix mix pixels, which have no stored features"
    if not clips_recur(training, data) and training.cache_features != "auto":
        return "training shows new clips in every epoch; set training.cache_views, or data.augment.fixed to true"
    return None
