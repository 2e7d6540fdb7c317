"""Typed configs of evaluations, suites and the demo. Command lines import them to print their help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from clipvid import InputError
from clipvid.data.config import DataConfig
from clipvid.evaluation.conditions import ALL_CONTROLS, Control
from clipvid.model.config import ModelConfig
from clipvid.registry import Choice
from clipvid.training.config import TrainingConfig
from clipvid.training.optim import OptimConfig


@dataclass(frozen=True)
class Recipe:
    """How the protocol trains a model on its own training videos; see `clipvid.training.config.FinetuneConfig`."""

    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)


@dataclass(frozen=True)
class EvaluateConfig:
    """A model under a protocol.

    name: what the model is called in reports; null for `model`, or the adapter of the recipe.
    model: a model folder, a repository on the Hub, or the name of a plain CLIP (`tiny`, `ViT-B-16` with `pretrained`).
    num_frames: of a plain CLIP.
    recipe: train under the protocol, in place of `model`.
    templates: for the class names: a set of `prompts.TEMPLATES`, a text file, or a list; null keeps those of a
        saved model (`single` for a plain CLIP and for a recipe).
    descriptions: JSON file, class name -> description or descriptions, which take the places of the names.
    protocol: `holdout`, `leave_one_group_out`, `few_shot` or `base_to_novel`, or a mapping with options
        (`clipvid.experiments.protocols`); null for `data.protocol`.
    average: what is averaged over the views of a video.
    controls: orders of frames to measure the model on besides: `reversed`, `shuffled`, `single` (the first, repeated),
        `bag` (each frame alone).
    zero_shot: measure the plain CLIP that the model stands on, too.
    alpha: the model is the weight-space ensemble `(1 - alpha) * zero-shot + alpha * fine-tuned`.
    sweep: further alphas to measure, for the curve.
    hardest_clips: how many the report shows.
    torch_compile: compile the blocks of the image tower with their adapters; the last digits are others then.
    """

    name: str | None = None
    model: str = "tiny"
    pretrained: str | None = None
    num_frames: int = 8
    recipe: Recipe | None = None
    templates: str | list[str] | None = None
    descriptions: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    protocol: Choice | None = None
    average: Literal["probabilities", "logits"] = "probabilities"
    controls: list[Control] = field(default_factory=lambda: list(ALL_CONTROLS))
    zero_shot: bool = True
    alpha: float = 1.0
    sweep: list[float] = field(default_factory=list)
    hardest_clips: int = 8
    batch_size: int = 16
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    torch_compile: bool = False
    output_dir: str = "outputs/evaluate"

    EXTENDABLE: ClassVar = frozenset({"controls", "sweep", "zero_shot"})  # a finished evaluation may be given more

    def __post_init__(self) -> None:
        _check_repeated("controls", self.controls)
        _check_repeated("sweep", [f"{alpha:g}" for alpha in self.sweep])
        outside = [alpha for alpha in (self.alpha, *self.sweep) if not 0 <= alpha <= 1]
        if outside:
            raise InputError(f"alpha or sweep: {outside} lie outside of 0 (zero-shot) to 1 (fine-tuned)")
        if self.recipe is not None and self.recipe.training.mixed_precision != self.mixed_precision:
            raise InputError(
                f"mixed_precision={self.mixed_precision} and recipe.training.mixed_precision="
                f"{self.recipe.training.mixed_precision}: training and evaluation share it, let them be the same"
            )
        if self.recipe is not None and self.recipe.training.load_best_model_at_end:
            raise InputError(
                "recipe.training.load_best_model_at_end would choose the weights on the very videos that are asked "
                "about; leave it off"
            )


def _check_repeated(option: str, names: Sequence[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"{option}: {', '.join(repeated)} is given more than once; name each value once")


def extend_evaluation(config: EvaluateConfig, finished: Mapping[str, Any]) -> EvaluateConfig:
    """Return the config with the controls and alphas of a finished evaluation before the new ones.

    Args:
        finished: record of the config of the finished evaluation.
    """
    return replace(
        config,
        controls=list(dict.fromkeys([*finished.get("controls", []), *config.controls])),
        sweep=list(dict.fromkeys([*finished.get("sweep", []), *config.sweep])),
        zero_shot=config.zero_shot or finished.get("zero_shot", False),
    )


@dataclass(frozen=True, kw_only=True)
class GridConfig:
    """How the trials of a grid run.

    output_dir: gets the tables of the grid, and the folders of its trials.
    jobs: trials at a time, each in its own process. By default they run one after another in this process, or in all
        processes of `accelerate launch`.
    threads: CPU threads of each process. By default torch chooses.
    """

    output_dir: str = "outputs/grid"
    jobs: int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        for option in ("jobs", "threads"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise InputError(f"{option}={value} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class SuiteConfig(GridConfig):
    """Every model under every protocol.

    models, protocols: name -> YAML with options of `clipvid evaluate`; those of the model win. The suite sets `name`
        and `output_dir`.
    """

    models: dict[str, str]
    protocols: dict[str, str]
    output_dir: str = "outputs/suite"


@dataclass(frozen=True)
class DemoConfig:
    """The demo's runs: an adapter and, as the baseline, mean pooling, each by its fine-tuning config."""

    adapter: str = "configs/demo.yaml"
    baseline: str = "configs/demo_mean_pooling.yaml"
    output_dir: str = "outputs/demo"
