"""Typed configs of training runs: settings of every run, and those of fine-tuning."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, ClassVar, Literal

from clipvid import InputError
from clipvid.data.config import DataConfig
from clipvid.model.config import ModelConfig
from clipvid.registry import FINITE, check_ranges, suggest
from clipvid.training.optim import OptimConfig
from clipvid.training.state import LoopSettings

METRIC_OF_SEVERAL = "val_map"  # for lists with several labels per video


def check_output_dir(folder: str) -> None:
    """Raise InputError for an empty name, which would mean the working folder."""
    if not folder.strip():
        raise InputError(f"output_dir={folder!r}: expected the name of a folder, such as outputs/my_run")


@dataclass(frozen=True)
class TrainingConfig(LoopSettings):
    """Settings of the training loop and the run.

    An optimizer step takes per_device_train_batch_size x processes x gradient_accumulation_steps clips.

    Attributes:
        per_device_train_batch_size: Clips per forward pass of each process in training.
        per_device_eval_batch_size: Videos per forward pass of each process in evaluation.
        gradient_accumulation_steps: Forward and backward passes per optimizer step.
        gradient_checkpointing: Recompute activations in the backward pass to save memory.
        mixed_precision: `no`, `bf16` or `fp16`.
        eval_epochs: Number of epochs between evaluations. The last epoch is always evaluated.
        early_stopping: Evaluations without a better `metric_for_best_model` after which the run ends, or 0 for never.
            Needs `load_best_model_at_end`. The schedule of the rates is that of all epochs.
        class_weights: `balanced` weights the loss of each class by the inverse of its number of training videos. For
            several labels per video, it weights the videos with a label by the number of those without it, per video
            with it.
        label_smoothing: Probability mass spread over all classes.
        mixup: Alpha of MixUp, 0 to disable.
        cutmix: Alpha of CutMix, 0 to disable.
        report_to: Tracker of Accelerate (`tensorboard`, `wandb`, ...) or `none`.
        auto_find_batch_size: Reduce the batch size until it fits into memory, with more accumulation steps. The clips
            of an optimizer step stay the same, but MixUp and BatchNorm see smaller batches. A resumed run never
            increases the batch size.
        ddp_timeout: Seconds after which a process that waits for a dead or hanging one ends with an error.
        torch_compile: Compile the blocks of the image tower with their adapters, for training and its evaluations.
        cache_features: Keep the output of the frozen lower blocks on disk, and read it in later epochs and runs. `auto`
            does so for clips that recur, up to 10 GiB or half of the free space. A number is a size in GiB, and an
            error where nothing can be kept. The folder is `$CLIPVID_CACHE/features`.
        cache_views: Number of random clips of each video, which take turns. 0 for new clips in every epoch.
        diagnose: Log accuracy on training videos, length of the adapters' updates, and, after the last epoch, accuracy
            without each adapter; see `clipvid.training.diagnosis`.
        head_epochs: Most iterations of L-BFGS that fit a new head before the first epoch, to features that are computed
            once for each of the `cache_views`. It needs a head without text that reads pooled features (`linear`,
            `cosine`). 0 for none, as in published recipes.
        frozen_bf16: Keep frozen linears of the image tower in bfloat16 during training. Requires `mixed_precision:
            bf16`, under which the results are bitwise the same.
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
    diagnose: bool = False
    frozen_bf16: bool = False
    cache_features: Literal["auto", "off", False] | float = "auto"
    cache_views: int = 0
    class_weights: Literal["none", "balanced"] = "none"
    head_epochs: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
        check_ranges("training", self, **dict.fromkeys((*counts, "ddp_timeout"), (1, FINITE)))
        check_ranges("training", self, label_smoothing=(0, 1), mixup=(0, FINITE), cutmix=(0, FINITE))
        check_ranges("training", self, cache_views=(0, FINITE), head_epochs=(0, FINITE))
        if self.cache_features is False:  # YAML reads `off` as a boolean
            object.__setattr__(self, "cache_features", "off")
        if not isinstance(self.cache_features, str):
            check_ranges("training", self, cache_features=(0, FINITE))
        if self.eval_epochs < 1:
            raise InputError(f"eval_epochs={self.eval_epochs} must be at least 1; the last epoch is always evaluated")
        if self.early_stopping and not self.load_best_model_at_end:
            raise InputError(
                f"training.early_stopping={self.early_stopping} needs training.load_best_model_at_end: true, which "
                "keeps the weights of the best evaluation"
            )
        if self.diagnose and self.torch_compile:
            raise InputError("training.diagnose measures inside the blocks, which torch_compile replaces; disable one")
        if self.frozen_bf16 and self.mixed_precision != "bf16":
            raise InputError(f"frozen_bf16 needs mixed_precision: bf16, got {self.mixed_precision}")


@dataclass(frozen=True)
class SelectionConfig:
    """Choice between the adapters and the model without them, by cross-validation on the training videos.

    `data.protocol: holdout` uses it. A fold holds out whole groups, such as persons, if the videos have several, and
    otherwise a share of each class.

    Attributes:
        folds: Number of folds, each with one training with the adapters and one without. There are at most as many as
            groups. 0 trains with the adapters in any case.
        max_videos: Training videos that take part. More are reduced to a random subset with the same share of each
            class.
    """

    folds: int = 3
    max_videos: int = 500

    def __post_init__(self) -> None:
        check_ranges("selection", self, folds=(0, FINITE), max_videos=(2, FINITE))
        if self.folds == 1:
            raise InputError("selection.folds=1: expected 0 for no selection, or at least 2")


@dataclass(frozen=True)
class HubConfig:
    """Repository that a finished run is pushed to; see `clipvid.push`.

    The token is that of `hf auth login`, or HF_TOKEN.

    Attributes:
        push_to_hub: Push the finished run.
        repo_id: `user/name`, created if it does not exist.
        private: Create a private repository.
        revision: Branch to commit to. By default the main branch.
    """

    push_to_hub: bool = False
    repo_id: str | None = None
    private: bool = False
    revision: str | None = None


@dataclass(frozen=True)
class RunConfig:
    """Options of every training.

    Subclasses set `VERB`, the command that uses them, and `METRICS`, the values of `training.metric_for_best_model`.
    `UNUSED` lists options that the command does not use. They are refused unless they have their defaults.

    Attributes:
        output_dir: Output folder. An interrupted run in it is resumed.
        seed: Seed of all random draws.
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
            value = getattr(owner, name)
            if value != _default(owner, name):
                raise InputError(f"{option}={value!r}: clipvid {self.VERB} does not use this option; remove it")

    def _check_metric(self) -> None:
        metric, used = self.training.metric_for_best_model, self.training.load_best_model_at_end
        # Configs with all options written out have the default of `TrainingConfig`, which is then unused.
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

    Attributes:
        templates: A name of `clipvid.model.prompts.TEMPLATES` or a list of templates, for the class names.
    """

    templates: str | list[str] = "single"
    data: DataConfig = field(default_factory=DataConfig)


@dataclass(frozen=True)
class FinetuneConfig(VideoRunConfig):
    """Options of fine-tuning on labeled video."""

    VERB: ClassVar[str] = "finetune"
    METRICS: ClassVar[tuple[str, ...]] = ("val_top1", METRIC_OF_SEVERAL)

    output_dir: str = "outputs/finetune"
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    hub: HubConfig = field(default_factory=HubConfig)
