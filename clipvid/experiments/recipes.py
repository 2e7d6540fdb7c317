"""Trainings of the parts of a protocol, as the recipe of an evaluation describes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator

from clipvid.experiments.config import EvaluateConfig, Recipe
from clipvid.experiments.protocols import Part
from clipvid.training.config import FinetuneConfig, SelectionConfig, TrainingConfig
from clipvid.training.small_sets import fit_small_set


def finetune_config(config: EvaluateConfig, part: Part, folder: Path, processes: int) -> FinetuneConfig:
    """Return the config of the training of one part, with a batch that its videos fill.

    Raises:
        InputError: the part has fewer videos than there are processes.
    """
    recipe = config.recipe
    assert recipe is not None
    return FinetuneConfig(
        output_dir=str(folder),
        seed=recipe.seed if part.seed is None else part.seed,
        model=recipe.model,
        templates=config.templates or "single",
        data=config.data,
        training=_fitted(recipe, config, part, processes),
        optim=recipe.optim,
        selection=SelectionConfig(folds=0),
    )


def announce_small_sets(config: EvaluateConfig, parts: Sequence[Part], accelerator: Accelerator) -> None:
    """Check that the videos of every part fill a batch, and print where it becomes smaller than in the recipe.

    Raises:
        InputError: a part has fewer videos than there are processes.
    """
    recipe, smaller = config.recipe, dict[int, str]()
    assert recipe is not None
    for part in parts:
        count, training = len(part.train or ()), recipe.training
        fitted = _fitted(recipe, config, part, accelerator.num_processes)
        if fitted != training:
            smaller[count] = (
                f"{count} training videos ({part.group}) do not fill a batch: training.per_device_train_batch_size is "
                f"{fitted.per_device_train_batch_size} instead of {training.per_device_train_batch_size}, "
                f"training.gradient_accumulation_steps {fitted.gradient_accumulation_steps}"
            )
    for line in smaller.values():
        accelerator.print(line)


def _fitted(recipe: Recipe, config: EvaluateConfig, part: Part, processes: int) -> TrainingConfig:
    return fit_small_set(recipe.training, len(part.train or ()) * config.data.repeats, processes)
