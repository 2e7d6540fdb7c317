"""Advice at the end of a run that learned little."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from clipvid.training.config import FinetuneConfig

FEW_STEPS = 50
_CHANCE = 0.97  # share of the NLL of a guess from which a model counts as guessing


def advice(figures: Mapping[str, Any], steps: int, num_classes: int, config: FinetuneConfig) -> str | None:
    """Return one line for a run that ends at chance or after few steps, None for any other.

    A run is at chance if its NLL is near or above ln K, and the interval of its top-1 includes 1 / K. Equal
    probabilities have an NLL of ln K.

    Args:
        figures: of the evaluation.
        steps: optimizer steps of the whole run.
        num_classes: K.
        config: of the run.
    """
    guess, nll = math.log(num_classes), figures.get("nll")  # none for several labels per video
    is_chance = num_classes > 1 and nll is not None and nll >= _CHANCE * guess
    is_chance = is_chance and figures["top1"]["low"] <= 1 / num_classes
    training = config.training
    more_steps = (
        f"raise training.epochs (now {training.epochs}) or lower training.per_device_train_batch_size (now "
        f"{training.per_device_train_batch_size})"
    )
    if is_chance:
        problem = (
            f"the model is at chance: its mean negative log-likelihood (NLL) is {nll:.3f}, that of a guess among "
            f"{num_classes} classes is {guess:.3f}"
        )
        if steps < FEW_STEPS:
            return f"{problem}. It was trained for {steps} steps only: {more_steps}"
        return (
            f"{problem}. Try a higher optim.lr (now {config.optim.lr:g}), more training.epochs (now {training.epochs}) "
            "or another model.adapter, and check that the labels of data.train belong to its videos"
        )
    return f"the model was trained for {steps} steps only: {more_steps}" if steps < FEW_STEPS else None
