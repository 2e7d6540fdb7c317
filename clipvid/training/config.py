"""Typed configs of training runs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, ClassVar, Literal

from clipvid import InputError
from clipvid.data.config import DataConfig
from clipvid.data.synthetic.world import WorldConfig
from clipvid.model.config import ModelConfig
from clipvid.registry import FINITE, Choice, check_ranges, suggest
from clipvid.training.optim import OptimConfig
from clipvid.training.pretext_tasks import resolve_pretext_tasks
from clipvid.training.state import LoopSettings


def check_output_dir(folder: str) -> None:
    """Raise InputError for an empty name, which would mean the working folder."""
    if not folder.strip():
        raise InputError(f"output_dir={folder!r}: expected the name of a folder, such as outputs/my_run")


@dataclass(frozen=True)
class TrainingConfig(LoopSettings):
    """The loop's settings and what else a run needs.

    per_device_train_batch_size x processes x gradient_accumulation_steps clips make one optimiser step.
    mixed_precision: `no`, `bf16` or `fp16`. eval_epochs: epochs between evaluations (the last is always evaluated).
    auto_find_batch_size: take fewer clips at once if the memory does not suffice, and as many more accumulation
        steps. The clips of an optimizer step stay the same (MixUp and BatchNorm see the smaller batches). A resumed
        run never takes more clips at once than it did before.
    mixup, cutmix: alphas, 0 for off. report_to: a tracker of Accelerate (`tensorboard`, `wandb`, ...) or `none`.
    ddp_timeout: seconds after which a process that waits for a dead or hanging one ends with an error.
    torch_compile: compile the blocks of the image tower with their adapters, for training and its evaluations.
    cache_features: keep what the frozen lower part of the model computes on disk, and read it back in later epochs and
        runs. `auto` does so where clips recur, up to 10 GiB or half of the free space; a number is a size in GiB and
        an error where nothing can be kept; `off` turns it off. The folder is `$CLIPVID_CACHE/features`.
    cache_views: training shows this many random clips of each video in turn, so that their features can be kept. 0 for
        new clips in every epoch.
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
    cache_features: Literal["auto", "off"] | float = "auto"
    cache_views: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
        check_ranges("training", self, **dict.fromkeys((*counts, "ddp_timeout"), (1, FINITE)))
        check_ranges("training", self, label_smoothing=(0, 1), mixup=(0, FINITE), cutmix=(0, FINITE))
        check_ranges("training", self, cache_views=(0, FINITE))
        if not isinstance(self.cache_features, str):
            check_ranges("training", self, cache_features=(0, FINITE))
        if self.eval_epochs < 1:
            raise InputError(f"eval_epochs={self.eval_epochs} must be at least 1; the last epoch is always evaluated")
        if self.frozen_bf16 and self.mixed_precision != "bf16":
            raise InputError(f"frozen_bf16 needs mixed_precision: bf16; it is {self.mixed_precision}")


@dataclass(frozen=True)
class HubConfig:
    """Where a finished run is pushed to; see `clipvid.push`. The token is that of `hf auth login`, or HF_TOKEN."""

    push_to_hub: bool = False
    repo_id: str | None = None
    private: bool = False
    revision: str | None = None


@dataclass(frozen=True)
class RunConfig:
    """Options of every training.

    Subclasses set `VERB`, the command that uses them; `METRICS`, which `training.metric_for_best_model` may name; and
    `UNUSED`, options that the command does not use. These are refused unless they have their defaults.
    """

    VERB: ClassVar[str]
    METRICS: ClassVar[tuple[str, ...]] = ("val_top1",)
    UNUSED: ClassVar[tuple[str, ...]] = ()

    output_dir: str = "outputs/run"
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        check_output_dir(self.output_dir)
        self._check_unused()
        self._check_metric()

    def _check_unused(self) -> None:
        for option in self.UNUSED:
            *parts, name = option.split(".")
            owner: Any = reduce(getattr, parts, self)
            value = getattr(owner, name, None)
            if owner is not None and value != _default(owner, name):
                raise InputError(f"{option}={value!r}: clipvid {self.VERB} does not use this option; leave it out")

    def _check_metric(self) -> None:
        metric, used = self.training.metric_for_best_model, self.training.load_best_model_at_end
        # Written-out configs have the default of `TrainingConfig` everywhere, and nothing reads it there.
        if metric in self.METRICS or (not used and metric == TrainingConfig.metric_for_best_model):
            return
        raise InputError(
            f"training.metric_for_best_model={metric!r}: clipvid {self.VERB} measures "
            f"{' and '.join(self.METRICS)}{suggest(metric, self.METRICS)}"
        )


def _default(owner: Any, name: str) -> Any:
    item = next(item for item in dataclasses.fields(owner) if item.name == name)
    return item.default if item.default_factory is dataclasses.MISSING else item.default_factory()


@dataclass(frozen=True)
class VideoRunConfig(RunConfig):
    """Options of every training on video.

    templates: a set of `clipvid.prompts.TEMPLATES` or a list of templates, for the class names.
    """

    templates: str | list[str] = "single"
    data: DataConfig = field(default_factory=DataConfig)


@dataclass(frozen=True)
class FinetuneConfig(VideoRunConfig):
    """Fine-tuning on labelled video."""

    VERB: ClassVar[str] = "finetune"

    output_dir: str = "outputs/finetune"
    hub: HubConfig = field(default_factory=HubConfig)


@dataclass(frozen=True)
class Videos:
    """A list of videos elsewhere; see `clipvid.videos.DataConfig`."""

    root: str
    videos: Choice
    classes: str | None = None


@dataclass(frozen=True)
class PretrainConfig(VideoRunConfig):
    """Training of adapters on video without labels, CLIP frozen.

    data: `train` is learnt from, its labels ignored; on `val` the zero-shot accuracy is followed.
    also: further lists to learn from.
    objectives: any of `masked`, `order`, `distillation`, by name or with options (`{"name": "order", "weight": 0.5}`);
        see `clipvid.pretext`.
    """

    VERB: ClassVar[str] = "pretrain"
    METRICS: ClassVar[tuple[str, ...]] = ("val_top1", "val_object")
    UNUSED: ClassVar[tuple[str, ...]] = (
        "training.label_smoothing",
        "training.mixup",
        "training.cutmix",
        "training.cache_features",
        "data.protocol",
        "data.augment.label_map_flip",
    )

    output_dir: str = "outputs/pretrain"
    also: list[Videos] = field(default_factory=list)
    objectives: list[Choice] = field(default_factory=lambda: ["masked", "order", "distillation"])

    def __post_init__(self) -> None:
        super().__post_init__()
        resolve_pretext_tasks(self.objectives)


@dataclass(frozen=True)
class StillsConfig:
    """Captioned stills: how many to train on, how many to measure on."""

    world: WorldConfig = field(default_factory=WorldConfig)
    train: int = 20000
    val: int = 1000


@dataclass(frozen=True)
class PretrainClipConfig(RunConfig):
    """Contrastive image-text training on captioned stills of the synthetic world.

    export_dir: where the finished CLIP is saved, in half precision, as a folder for `local-dir:`.
    """

    VERB: ClassVar[str] = "pretrain-clip"
    METRICS: ClassVar[tuple[str, ...]] = ("val_object",)
    UNUSED: ClassVar[tuple[str, ...]] = (
        "model.init_from",
        "training.label_smoothing",
        "training.mixup",
        "training.cutmix",
        "training.cache_features",
        "training.cache_views",
        "training.auto_find_batch_size",  # the other stills of a batch are part of the objective
        "training.torch_compile",
        "training.frozen_bf16",
        "stills.world.fps",
        "stills.world.train_per_class",
        "stills.world.val_per_class",
        "stills.world.test_per_class",
    )

    output_dir: str = "outputs/pretrain"
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(metric_for_best_model="val_object"))
    stills: StillsConfig = field(default_factory=StillsConfig)
    export_dir: str | None = None
