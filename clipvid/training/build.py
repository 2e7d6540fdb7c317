"""Construction of training objects from typed configs."""

from __future__ import annotations

import dataclasses
import os
import warnings
from datetime import timedelta
from pathlib import Path

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import InitProcessGroupKwargs, LoggerType, ProjectConfiguration
from torch.utils.data import DataLoader

from clipvid import InputError
from clipvid.data.broken import BadVideos
from clipvid.data.loader import TrainBatches, VideoDataset, build_loader
from clipvid.data.manifest import Manifest
from clipvid.data.splits import BAD_VIDEOS, train_dataset
from clipvid.distributed import follow_launch_file
from clipvid.hub.continuing import start_from
from clipvid.model.factory import build_model
from clipvid.model.trainable import TrainableModel
from clipvid.model.video_clip import VideoCLIP
from clipvid.training.batch_size import largest_batch_size
from clipvid.training.checkpoint import recorded_batch_size
from clipvid.training.config import FinetuneConfig, TrainingConfig, VideoRunConfig
from clipvid.training.features import clips_recur, open_features
from clipvid.training.first_head import head_is_first
from clipvid.training.objectives import (
    Classification,
    Objective,
    SeveralLabels,
    balanced_weights,
    positive_weights,
)
from clipvid.training.optim import OptimConfig, build_optimizer, build_scheduler, describe_groups
from clipvid.training.trainer import CHECKPOINTS, Trainer


def train_loader(
    config: VideoRunConfig,
    dataset: VideoDataset,
    training: TrainingConfig,
    accelerator: Accelerator,
    output_dir: Path,
) -> DataLoader:
    """Build the loader of training clips for this process. Unreadable videos go to `output_dir`/bad_videos.jsonl."""
    batches = TrainBatches(
        len(dataset),
        training.per_device_train_batch_size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        accumulation=training.gradient_accumulation_steps,
        repeats=config.data.repeats,
        seed=config.seed,
        balanced=[sample.label for sample in dataset.manifest.samples] if config.data.balance else None,
    )
    bad = BadVideos("train", len(dataset), config.data.max_bad_fraction, output_dir / BAD_VIDEOS)
    return build_loader(dataset, batches, config.data.num_workers, bad)


def fit_memory(
    training: TrainingConfig,
    model: TrainableModel,
    objective: Objective,
    dataset: VideoDataset,
    accelerator: Accelerator,
    earlier: int | None,
) -> TrainingConfig:
    """Return `training` with the batch size that fits into memory and the accumulation that makes up for it."""
    batch_size = training.per_device_train_batch_size
    fitting = largest_batch_size(accelerator, model, objective, dict(dataset[0, 0]), batch_size, earlier)
    steps = training.gradient_accumulation_steps * (batch_size // fitting)
    accelerator.print(f"batch size {fitting} on each process, accumulated {steps} times per step")
    return dataclasses.replace(training, per_device_train_batch_size=fitting, gradient_accumulation_steps=steps)


def classification(config: FinetuneConfig, videos: Manifest) -> Classification | SeveralLabels:
    """Build the objective of fine-tuning on some videos."""
    training, count = config.training, len(videos.classes)
    weights = None
    if videos.is_multi_label:
        if training.class_weights == "balanced":
            weights = positive_weights([sample.labels or () for sample in videos.samples], count)
        return SeveralLabels(config.seed, training.label_smoothing, training.mixup, training.cutmix, weights)
    if training.class_weights == "balanced":
        weights = balanced_weights([sample.label for sample in videos.samples], count)
    return Classification(count, config.seed, training.label_smoothing, training.mixup, training.cutmix, weights)


def check_tracker(name: str) -> None:
    """Raise InputError unless the tracker can be used. Accelerate ignores trackers with missing packages."""
    if name in ("none", "all"):
        return
    if name not in LOGGER_TYPE_TO_CLASS:
        names = ", ".join(sorted({*LOGGER_TYPE_TO_CLASS, "all", "none"}))
        raise InputError(f"training.report_to={name}: expected one of {names}")
    is_custom = name not in LoggerType.list()
    if not is_custom and LoggerType(name) not in get_available_trackers():
        raise InputError(
            f"training.report_to={name}: the package {name} is not installed. Install it (pip install {name}), or "
            "choose another tracker or none"
        )


def build_accelerator(training: TrainingConfig, output_dir: str) -> Accelerator:
    """Build the Accelerator of a run.

    Raises:
        InputError: The tracker of `report_to` is unknown or not installed; see also `follow_launch_file`.
    """
    check_tracker(training.report_to)
    accelerator = Accelerator(
        mixed_precision=training.mixed_precision,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        log_with=None if training.report_to == "none" else training.report_to,
        project_config=ProjectConfiguration(project_dir=output_dir, logging_dir=output_dir),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=training.ddp_timeout))],
    )
    follow_launch_file(accelerator)
    return accelerator


def build_finetune_model(config: VideoRunConfig, labels: list[str]) -> VideoCLIP:
    """Build the model to train, with its labels and the weights of `init_from`.

    Raises:
        InputError: `model.pretrained` is missing. Training from scratch requires `random`.
    """
    own_weights = ":" in config.model.backbone or config.model.backbone == "tiny"
    if config.model.pretrained is None and not own_weights:
        raise InputError(
            f"model.pretrained is missing for {config.model.backbone}: set it to the weights (openai, "
            "laion2b_s34b_b79k, a file ...), or to `random` to train from scratch"
        )
    model = build_model(config.model, labels, config.templates)
    if config.model.init_from is not None:
        started = start_from(model, config.model.init_from)
        if os.environ.get("RANK", "0") == "0":
            print(f"init_from {config.model.init_from}: {started}")
    model.encoder.gradient_checkpointing = config.training.gradient_checkpointing
    if config.training.torch_compile:
        model.encoder.compile_blocks()
    model.preprocessing = config.data.preprocessing
    return model


def build_trainer(
    config: VideoRunConfig,
    model: TrainableModel,
    objective: Objective,
    manifest: Manifest,
    accelerator: Accelerator,
    output_dir: Path,
    keep_features: bool = False,
) -> Trainer:
    """Build the trainer of a run. The model must already be on its device.

    Args:
        keep_features: open the cache of `training.cache_features`, for an objective that only shows clips to the model.
    """
    training = config.training
    if accelerator.is_fsdp2 and (training.torch_compile or training.frozen_bf16):
        raise InputError("training.torch_compile and training.frozen_bf16 do not work with FSDP2; remove them")
    if training.frozen_bf16:
        model.video_model.encoder.lower_frozen_precision()
    dataset = train_dataset(config.data, model.video_model, manifest, config.seed, training.cache_views)
    if training.auto_find_batch_size:
        earlier = recorded_batch_size(output_dir / CHECKPOINTS)
        training = fit_memory(training, model, objective, dataset, accelerator, earlier)
    features = None
    if keep_features and isinstance(model.video_model, VideoCLIP):
        features = open_features(training, config.data, model.video_model, accelerator)
    if features is not None and clips_recur(training, config.data):
        dataset = train_dataset(
            config.data, features.model, manifest, config.seed, training.cache_views, features.stored
        )
    accelerator.gradient_accumulation_steps = training.gradient_accumulation_steps
    loader = train_loader(config, dataset, training, accelerator, output_dir)
    optimizer = build_optimizer(model, _rates(config.optim, head_is_first(model, training)))
    batches: TrainBatches = loader.batch_sampler  # type: ignore[assignment]
    accelerator.print(describe_groups(model, optimizer))
    scheduler = build_scheduler(optimizer, config.optim, training.epochs * batches.steps_per_epoch)
    return Trainer(
        accelerator,
        model,
        objective,
        loader,
        optimizer,
        scheduler,
        training,
        config.seed,
        output_dir,
        name_of=lambda index: manifest.samples[index].path,
        features=features,
    )


def _rates(optim: OptimConfig, is_first: bool) -> OptimConfig:
    """Return the options of the optimizer. A head that is fitted first trains at the rate of all other weights."""
    if not is_first:
        return optim
    if optim.head_lr not in (None, optim.lr, OptimConfig.head_lr):
        warnings.warn(
            f"optim.head_lr={optim.head_lr:g} is not used: the head is fitted first, and then trains with optim.lr; "
            "set training.head_epochs to 0 to use it, or set the rate in optim.groups",
            stacklevel=2,
        )
    return dataclasses.replace(optim, head_lr=None)
