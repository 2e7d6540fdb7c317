"""The typed configs of runs, and the only place where they become objects."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Literal

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration
from torch.utils.data import DataLoader

from clipvid.batch_size import largest_batch_size
from clipvid.builder import build_model
from clipvid.data.broken import BadVideos
from clipvid.data.loader import TrainBatches, VideoDataset, build_loader
from clipvid.data.manifest import Manifest
from clipvid.engine import Trainer
from clipvid.hub import start_from
from clipvid.loop import LoopSettings
from clipvid.model import ModelConfig, VideoCLIP
from clipvid.objectives import Classification, Objective
from clipvid.optim import OptimConfig, build_optimizer, build_scheduler, describe_groups
from clipvid.options import claim_output as claim_output
from clipvid.options import config_record as config_record
from clipvid.options import parse_config as parse_config
from clipvid.pretraining import Student
from clipvid.sharding import follow_launch_file
from clipvid.videos import BAD_VIDEOS, DataConfig, train_dataset


@dataclass(frozen=True)
class TrainingConfig(LoopSettings):
    """The loop's settings and what else a run needs.

    per_device_train_batch_size x processes x gradient_accumulation_steps clips make one optimiser step.
    mixed_precision: `no`, `bf16` or `fp16`. eval_epochs: epochs between evaluations (the last is always evaluated).
    auto_find_batch_size: take fewer clips at once where the memory does not suffice, and as many more accumulation
        steps: the clips of an optimiser step stay the same (MixUp and BatchNorm see the smaller batches).
    mixup, cutmix: alphas, 0 for off. report_to: a tracker of Accelerate (`tensorboard`, `wandb`, ...) or `none`.
    ddp_timeout: seconds after which a process that waits for a dead or hanging one ends with an error.
    torch_compile: compile the blocks of the image tower with their adapters, for training and its evaluations.
    frozen_bf16: keep frozen linears of the image tower in bfloat16 during training; needs `mixed_precision: bf16`,
        under which the results are the same to the bit.
    """

    per_device_train_batch_size: int = 16
    per_device_eval_batch_size: int = 16
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    eval_epochs: int = 1
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    report_to: str = "tensorboard"
    auto_find_batch_size: bool = False
    ddp_timeout: int = 1800
    torch_compile: bool = False
    frozen_bf16: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eval_epochs < 1:
            raise ValueError(f"eval_epochs={self.eval_epochs} must be at least 1; the last epoch is always evaluated")
        if self.frozen_bf16 and self.mixed_precision != "bf16":
            raise ValueError(f"frozen_bf16 needs mixed_precision: bf16; it is {self.mixed_precision}")


@dataclass(frozen=True)
class HubConfig:
    """Where a finished run is pushed to; see `clipvid.push`. The token is that of `hf auth login`, or HF_TOKEN."""

    push_to_hub: bool = False
    repo_id: str | None = None
    private: bool = False
    revision: str | None = None


@dataclass(frozen=True)
class VideoRunConfig:
    """What every training on video needs.

    templates: a set of `clipvid.prompts.TEMPLATES` or a list of templates, for the class names.
    """

    output_dir: str = "outputs/run"
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    templates: str | list[str] = "single"
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)


@dataclass(frozen=True)
class FinetuneConfig(VideoRunConfig):
    """Fine-tuning on labelled video."""

    output_dir: str = "outputs/finetune"
    hub: HubConfig = field(default_factory=HubConfig)


def train_loader(
    config: VideoRunConfig,
    dataset: VideoDataset,
    training: TrainingConfig,
    accelerator: Accelerator,
    output_dir: Path,
) -> DataLoader:
    """Keyed batches of training clips for this process; unreadable videos go to `output_dir`/bad_videos.jsonl."""
    batches = TrainBatches(
        len(dataset),
        training.per_device_train_batch_size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        accumulation=training.gradient_accumulation_steps,
        repeats=config.data.repeats,
        seed=config.seed,
    )
    bad = BadVideos("train", len(dataset), config.data.max_bad_fraction, output_dir / BAD_VIDEOS)
    return build_loader(dataset, batches, config.data.num_workers, bad)


def fit_memory(
    training: TrainingConfig,
    model: VideoCLIP | Student,
    objective: Objective,
    dataset: VideoDataset,
    accelerator: Accelerator,
) -> TrainingConfig:
    """`training` with as many clips at once as fit, and the accumulation that makes up for it."""
    wanted = training.per_device_train_batch_size
    found = largest_batch_size(accelerator, model, objective, dict(dataset[0, 0]), wanted)
    steps = training.gradient_accumulation_steps * (wanted // found)
    accelerator.print(f"{found} clips at once on each process, {steps} times per step")
    return dataclasses.replace(training, per_device_train_batch_size=found, gradient_accumulation_steps=steps)


def classification(config: FinetuneConfig, num_classes: int) -> Objective:
    """What fine-tuning minimises."""
    training = config.training
    return Classification(num_classes, config.seed, training.label_smoothing, training.mixup, training.cutmix)


def build_accelerator(training: TrainingConfig, output_dir: str) -> Accelerator:
    """Accelerate's door to devices, processes, precision and trackers."""
    accelerator = Accelerator(
        mixed_precision=training.mixed_precision,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        log_with=None if training.report_to == "none" else training.report_to,
        project_config=ProjectConfiguration(project_dir=output_dir, logging_dir=f"{output_dir}/logs"),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=training.ddp_timeout))],
    )
    follow_launch_file(accelerator)
    return accelerator


def build_finetune_model(config: VideoRunConfig, labels: list[str]) -> VideoCLIP:
    """The model to train, with its labels, from where `init_from` left it; pretrained weights are required, or
    `random` by name."""
    own_weights = ":" in config.model.backbone or config.model.backbone == "tiny"
    if config.model.pretrained is None and not own_weights:
        raise ValueError(
            f"model.pretrained is missing for {config.model.backbone}: name the weights (openai, laion2b_s34b_b79k, "
            "a file ...), or `random` to train from scratch"
        )
    model = build_model(config.model, labels, config.templates)
    if config.model.init_from is not None:
        start_from(model, config.model.init_from)
    model.encoder.gradient_checkpointing = config.training.gradient_checkpointing
    if config.training.torch_compile:
        model.encoder.compile_blocks()
    model.preprocessing = {
        "sampling": {"name": config.data.sampling, "stride": config.data.stride},
        "resize": config.data.resize,
    }
    return model


def build_trainer(
    config: VideoRunConfig,
    model: VideoCLIP | Student,
    objective: Objective,
    manifest: Manifest,
    accelerator: Accelerator,
    output_dir: Path,
) -> Trainer:
    """The trainer of a run of a model on its device; its `on_epoch_end` is left to the caller."""
    training = config.training
    if accelerator.is_fsdp2 and (training.torch_compile or training.frozen_bf16):
        raise ValueError("training.torch_compile and training.frozen_bf16 do not go with FSDP2: leave them out")
    if training.frozen_bf16:
        model.encoder.lower_frozen_precision()
    dataset = train_dataset(config.data, config.model, manifest, model.image_size, config.seed)
    if training.auto_find_batch_size:
        training = fit_memory(training, model, objective, dataset, accelerator)
    accelerator.gradient_accumulation_steps = training.gradient_accumulation_steps
    loader = train_loader(config, dataset, training, accelerator, output_dir)
    optimizer = build_optimizer(model, config.optim)
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
    )
