"""The typed configs of runs, and the only place where they become objects."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from jsonargparse import auto_cli
from torch.utils.data import DataLoader

from clipvid.builder import build_model
from clipvid.data.loader import EvalBatches, FrameOrder, TrainBatches, VideoDataset, build_loader
from clipvid.data.manifest import Manifest, load_manifest
from clipvid.data.sampling import FrameSampling
from clipvid.data.synthetic import WorldConfig, build_world
from clipvid.data.transforms import eval_transforms, train_transform
from clipvid.engine import LoopSettings, Trainer
from clipvid.model import ModelConfig, VideoCLIP
from clipvid.objectives import Classification, Objective
from clipvid.optim import OptimConfig, build_optimizer, build_scheduler

ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True)
class AugmentConfig:
    """How training clips are varied, the same way for all frames of a clip; see `clipvid.data.transforms`."""

    scale: tuple[float, float] = (0.8, 1.0)
    flip: bool = False
    color_jitter: float = 0.0
    grayscale: float = 0.0
    random_erasing: float = 0.0


@dataclass(frozen=True)
class DataConfig:
    """Where videos are and how clips are taken from them.

    root: folder that paths are relative to. train, val: lists (`path label`) or CSV manifests in it.
    classes: names of the classes in it: one per line (.txt), or CSV with `id,name`.
    world: a synthetic world to build in `root` first.
    group_pattern: regular expression whose first group, matched on a path, names the video's group (a person, ...).
    protocol: `holdout` trains on train and evaluates on val; `leave_one_group_out` pools both and holds out each
        group in turn.
    sampling, stride: `uniform` segments over the video, or a `dense` window with `stride` frames between.
    resize: `shortest_center` or `squash`, for evaluation. test_clips, test_crops: views per video in evaluation.
    """

    root: str = "data"
    train: str = "train.csv"
    val: str = "val.csv"
    classes: str = "classes.csv"
    world: WorldConfig | None = None
    group_pattern: str | None = None
    protocol: Literal["holdout", "leave_one_group_out"] = "holdout"
    sampling: Literal["uniform", "dense"] = "uniform"
    stride: int = 1
    resize: Literal["shortest_center", "squash"] = "shortest_center"
    test_clips: int = 1
    test_crops: int = 1
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    num_workers: int = 2


@dataclass(frozen=True)
class TrainingConfig(LoopSettings):
    """The loop's settings and what else a run needs.

    per_device_train_batch_size x processes x gradient_accumulation_steps clips make one optimiser step.
    mixed_precision: `no`, `bf16` or `fp16`. eval_epochs: epochs between evaluations (the last is always evaluated).
    mixup, cutmix: alphas, 0 for off. report_to: a tracker of Accelerate (`tensorboard`, `wandb`, ...) or `none`.
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


@dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tuning on labelled video.

    templates: a set of `clipvid.prompts.TEMPLATES` or a list of templates, for the class names.
    """

    output_dir: str = "outputs/finetune"
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    templates: str | list[str] = "single"
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)


def parse_config(config_class: type[ConfigT], args: list[str] | None, prog: str) -> ConfigT:
    """A config from `--config file.yaml` and the command line, later ones winning; unknown keys end the program."""
    config: ConfigT = auto_cli(config_class, args=args, prog=prog, as_positional=False)
    return config


def config_record(config: Any) -> dict[str, Any]:
    """The config as plain JSON types."""
    record: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return record


def claim_output(folder: Path, config: Any) -> None:
    """Make `folder` the place of the run `config`, or of its continuation.

    Raises:
        FileExistsError: it holds a run with another config; says what differs.
    """
    path, wanted = folder / "run.yaml", config_record(config)
    if path.is_file():
        found = yaml.safe_load(path.read_text())
        differing = sorted(_differences(found, wanted))
        if differing:
            raise FileExistsError(
                f"{folder} holds a run with another config ({', '.join(differing[:6])} differ). "
                "Choose another output_dir, or delete this one to start over."
            )
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(wanted, sort_keys=False))


def _differences(found: Any, wanted: Any, prefix: str = "") -> list[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = found.keys() | wanted.keys()
        return [name for key in keys for name in _differences(found.get(key), wanted.get(key), f"{prefix}.{key}")]
    return [] if found == wanted else [prefix.lstrip(".")]


def load_split(config: DataConfig, split: Literal["train", "val"]) -> Manifest:
    """The manifest of one split; builds the synthetic world first where the config asks for one."""
    if config.world is not None:
        build_world(config.world, config.root)
    file: str = getattr(config, split)
    return load_manifest(config.root, file, config.classes, config.group_pattern)


def train_loader(config: FinetuneConfig, manifest: Manifest, image_size: int, accelerator: Accelerator) -> DataLoader:
    """Keyed batches of training clips for this process."""
    transform = train_transform(image_size, **dataclasses.asdict(config.data.augment))
    dataset = VideoDataset(manifest, _sampling(config.data, config.model), transform, seed=config.seed, training=True)
    batches = TrainBatches(
        len(manifest),
        config.training.per_device_train_batch_size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        accumulation=config.training.gradient_accumulation_steps,
        seed=config.seed,
    )
    return build_loader(dataset, batches, config.data.num_workers)


def eval_loader(
    data: DataConfig,
    model: VideoCLIP,
    manifest: Manifest,
    accelerator: Accelerator,
    batch_size: int,
    frame_order: FrameOrder = "forward",
) -> DataLoader:
    """Every video of the manifest once over all processes, `test_clips x test_crops` views each."""
    dataset = VideoDataset(
        manifest,
        _sampling(data, model.config),
        eval_transforms(model.image_size, data.resize, data.test_crops),
        seed=0,
        training=False,
        clips=data.test_clips,
        crops=data.test_crops,
        frame_order=frame_order,
    )
    batches = EvalBatches(
        len(manifest), batch_size, rank=accelerator.process_index, world_size=accelerator.num_processes
    )
    return build_loader(dataset, batches, data.num_workers)


def _sampling(data: DataConfig, model: ModelConfig) -> FrameSampling:
    return FrameSampling(data.sampling, model.num_frames, data.stride)


def build_accelerator(training: TrainingConfig, output_dir: str) -> Accelerator:
    """Accelerate's door to devices, processes, precision and trackers."""
    return Accelerator(
        mixed_precision=training.mixed_precision,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        log_with=None if training.report_to == "none" else training.report_to,
        project_config=ProjectConfiguration(project_dir=output_dir, logging_dir=f"{output_dir}/logs"),
    )


def build_finetune_model(config: FinetuneConfig, labels: list[str]) -> VideoCLIP:
    """The model to fine-tune, with its labels; pretrained weights are required, or `random` by name."""
    own_weights = ":" in config.model.backbone or config.model.backbone == "tiny"
    if config.model.pretrained is None and not own_weights:
        raise ValueError(
            f"model.pretrained is missing for {config.model.backbone}: name the weights (openai, laion2b_s34b_b79k, "
            "a file ...), or `random` to train from scratch"
        )
    model = build_model(config.model, labels, config.templates)
    model.encoder.gradient_checkpointing = config.training.gradient_checkpointing
    model.preprocessing = {
        "sampling": {"name": config.data.sampling, "stride": config.data.stride},
        "resize": config.data.resize,
    }
    return model


def build_trainer(
    config: FinetuneConfig, model: VideoCLIP, manifest: Manifest, accelerator: Accelerator, output_dir: Path
) -> Trainer:
    """The trainer of a fine-tuning run; its `on_epoch_end` is left to the caller."""
    training = config.training
    loader = train_loader(config, manifest, model.image_size, accelerator)
    optimizer = build_optimizer(model, config.optim)
    batches: TrainBatches = loader.batch_sampler  # type: ignore[assignment]
    scheduler = build_scheduler(optimizer, config.optim, training.epochs * batches.steps_per_epoch)
    objective: Objective = Classification(
        len(manifest.classes), config.seed, training.label_smoothing, training.mixup, training.cutmix
    )
    return Trainer(
        accelerator,
        model.to(accelerator.device),
        objective,
        loader,
        optimizer,
        scheduler,
        training,
        config.seed,
        output_dir,
    )
