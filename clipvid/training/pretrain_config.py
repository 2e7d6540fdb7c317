"""Typed configs of training without labels: of adapters on video, and of a small CLIP on stills."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from clipvid import InputError
from clipvid.data.synthetic.world import WorldConfig
from clipvid.registry import Choice
from clipvid.training.config import RunConfig, TrainingConfig, VideoRunConfig
from clipvid.training.pretext_tasks import PRETEXT_TASKS, resolve_pretext_tasks


@dataclass(frozen=True)
class Videos:
    """Additional list of videos; see `clipvid.data.config.DataConfig`.

    Attributes:
        root: Folder that paths are relative to.
        videos: List of videos, as `data.train`.
        classes: Class list, or None for the labels of the list.
    """

    root: str
    videos: Choice
    classes: str | None = None


@dataclass(frozen=True)
class PretrainConfig(VideoRunConfig):
    """Options of training adapters on video without labels, with CLIP frozen.

    Attributes:
        data: `train` is the training data, with labels ignored. `val` measures zero-shot accuracy.
        also: Further lists of training videos.
        objectives: Any of `masked`, `order`, `neighbors`, `speed`, `direction`, `tracking`, `distillation`, by name or
            with options (`{"name": "order", "weight": 0.5}`); see `clipvid.training.pretext_tasks`.
    """

    VERB: ClassVar[str] = "pretrain"
    METRICS: ClassVar[tuple[str, ...]] = ("val_top1", "val_object")
    UNUSED: ClassVar[tuple[str, ...]] = (
        "model.multi_label",
        "training.class_weights",
        "training.head_epochs",
        "training.label_smoothing",
        "training.mixup",
        "training.cutmix",
        "training.diagnose",
        "optim.head_lr",
        "data.balance",
        "data.protocol",
        "data.augment.label_map_flip",
    )

    output_dir: str = "outputs/pretrain"
    also: list[Videos] = field(default_factory=list)
    objectives: list[Choice] = field(default_factory=lambda: ["masked", "order", "distillation"])

    def __post_init__(self) -> None:
        super().__post_init__()
        tasks = resolve_pretext_tasks(self.objectives)
        changing = [name for name in tasks if not PRETEXT_TASKS[name].only_reorders]
        if changing and self.training.cache_features not in ("auto", "off"):
            raise InputError(
                f"training.cache_features={self.training.cache_features:g}: the objective {changing[0]} changes "
                "pixels, which have no stored features. Set it to auto or off"
            )


@dataclass(frozen=True)
class StillsConfig:
    """Captioned stills.

    Attributes:
        world: World of the stills.
        train: Number of stills for training.
        val: Number of stills for evaluation.
    """

    world: WorldConfig = field(default_factory=WorldConfig)
    train: int = 20000
    val: int = 1000


@dataclass(frozen=True)
class PretrainClipConfig(RunConfig):
    """Options of contrastive image-text training on captioned stills of the synthetic world.

    Attributes:
        export_dir: Folder of the finished CLIP in half precision, for `local-dir:`.
    """

    VERB: ClassVar[str] = "pretrain-clip"
    METRICS: ClassVar[tuple[str, ...]] = ("val_object",)
    UNUSED: ClassVar[tuple[str, ...]] = (
        "model.init_from",
        "model.multi_label",
        "training.class_weights",
        "training.head_epochs",
        "training.label_smoothing",
        "training.mixup",
        "training.cutmix",
        "training.cache_features",
        "training.cache_views",
        "training.auto_find_batch_size",  # the objective depends on the other stills of a batch
        "training.torch_compile",
        "training.diagnose",
        "optim.head_lr",
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
