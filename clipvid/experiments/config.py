"""Typed configs of evaluations, suites and the demo, without slow imports, since command lines import them."""

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
    """Training of a model on the protocol's training videos; see `clipvid.training.config.FinetuneConfig`."""

    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)


@dataclass(frozen=True)
class EvaluateConfig:
    """Options of `clipvid evaluate`.

    Attributes:
        name: Name of the model in reports. By default `model`, or the adapter of the recipe.
        model: A model folder, a repository on the Hub, or the name of a plain CLIP (`tiny`, `ViT-B-16` with
            `pretrained`).
        pretrained: Weights of a plain CLIP.
        num_frames: Number of frames of a plain CLIP.
        recipe: Training under the protocol, instead of `model`.
        templates: Templates of the class names: a name of `TEMPLATES`, a text file, or a list. By default those of a
            saved model, and `single` for a plain CLIP and a recipe.
        descriptions: JSON file, class name -> description or descriptions, which replace the names.
        protocol: `holdout`, `leave_one_group_out`, `few_shot` or `base_to_novel`, or a mapping with options
            (`clipvid.experiments.protocols`). By default `data.protocol`.
        average: Average over the views of a video.
        controls: Additional orders of frames: `reversed`, `shuffled`, `single` (the first, repeated), `bag` (each frame
            alone).
        zero_shot: Measure the underlying plain CLIP too.
        alpha: Evaluate the weight-space ensemble `(1 - alpha) * zero-shot + alpha * fine-tuned`.
        sweep: Further alphas, for the curve.
        hardest_clips: Number of clips in the report.
        batch_size: Videos per forward pass of each process.
        mixed_precision: `no`, `bf16` or `fp16`.
        torch_compile: Compile the blocks of the image tower with their adapters. This changes the last digits.
        output_dir: Output folder. An interrupted evaluation in it is resumed.
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

    EXTENDABLE: ClassVar = frozenset({"controls", "sweep", "zero_shot"})  # extendable after an evaluation

    def __post_init__(self) -> None:
        _check_repeated("controls", self.controls)
        _check_repeated("sweep", [f"{alpha:g}" for alpha in self.sweep])
        outside = [alpha for alpha in (self.alpha, *self.sweep) if not 0 <= alpha <= 1]
        if outside:
            raise InputError(f"alpha or sweep: {outside} is outside of 0 (zero-shot) to 1 (fine-tuned)")
        if self.recipe is not None and self.recipe.training.mixed_precision != self.mixed_precision:
            raise InputError(
                f"mixed_precision={self.mixed_precision} and recipe.training.mixed_precision="
                f"{self.recipe.training.mixed_precision}: training and evaluation share it, so use equal values"
            )
        if self.recipe is not None and self.recipe.training.load_best_model_at_end:
            raise InputError(
                "recipe.training.load_best_model_at_end would select the weights on the test videos; disable it"
            )


def _check_repeated(option: str, names: Sequence[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"{option}: {', '.join(repeated)} is repeated; list each value once")


def extend_evaluation(config: EvaluateConfig, finished: Mapping[str, Any]) -> EvaluateConfig:
    """Return the config with the controls and alphas of a finished evaluation before the new ones.

    Args:
        config: Config of the new evaluation.
        finished: Recorded config of the finished evaluation.
    """
    return replace(
        config,
        controls=list(dict.fromkeys([*finished.get("controls", []), *config.controls])),
        sweep=list(dict.fromkeys([*finished.get("sweep", []), *config.sweep])),
        zero_shot=config.zero_shot or finished.get("zero_shot", False),
    )


@dataclass(frozen=True, kw_only=True)
class GridConfig:
    """Options of the runner of a grid.

    Attributes:
        output_dir: Folder of the tables and the trials.
        jobs: Number of parallel trials, each in a separate process. By default they run one after another in this
            process, or in all processes of `accelerate launch`.
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
    """Options of a suite, which evaluates every model under every protocol.

    Attributes:
        models: Name -> YAML with options of `clipvid evaluate`. They override those of the protocol. The suite sets
            `name` and `output_dir`.
        protocols: Name -> YAML with options of `clipvid evaluate`.
    """

    models: dict[str, str]
    protocols: dict[str, str]
    output_dir: str = "outputs/suite"


@dataclass(frozen=True)
class DemoConfig:
    """Options of the demo: the fine-tuning configs of an adapter and of mean pooling as the baseline."""

    adapter: str = "configs/demo.yaml"
    baseline: str = "configs/demo_mean_pooling.yaml"
    output_dir: str = "outputs/demo"
