"""Fine-tuning on labeled video."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator

from clipvid import InputError, RunError
from clipvid.backbone.state_dicts import load_strictly
from clipvid.data.manifest import Manifest
from clipvid.data.splits import eval_loader
from clipvid.distributed import is_sharded
from clipvid.evaluation.summary import describe, evaluate, main_figure
from clipvid.hub.push import check_login, check_repo_id, push_to_hub
from clipvid.model.config import ModelConfig
from clipvid.training.advice import advice
from clipvid.training.build import build_trainer, classification
from clipvid.training.config import FinetuneConfig
from clipvid.training.diagnosis import Diagnosis, Validation
from clipvid.training.first_head import train_head_first
from clipvid.training.optim import matching_groups
from clipvid.training.session import (
    Session,
    fresh_model,
    input_hashes,
    load_finished_run,
    preemption,
    session,
    with_backbone,
    write_run,
)
from clipvid.training.several_labels import for_list, set_first_bias
from clipvid.training.state import TrainState
from clipvid.training.trainer import Trainer
from clipvid.training.unreadable import OpenedVideos, count_unreadable


def check_hub(config: FinetuneConfig) -> None:
    """Check before training that the push after it can work."""
    if config.data.protocol != "holdout":
        raise InputError(
            f"hub.push_to_hub: {config.data.protocol} makes a model for each group; disable it, and push one of "
            "them with `clipvid push`"
        )
    if config.hub.repo_id is None:
        raise InputError("hub.push_to_hub needs hub.repo_id: user/name")
    check_repo_id(config.hub.repo_id)
    check_login()


def push_run(config: FinetuneConfig, output: Path) -> str:
    """Push the model folder of a finished run and return the URL of the commit."""
    hub = config.hub
    assert hub.repo_id is not None
    try:
        return push_to_hub(output, hub.repo_id, hub.private, hub.revision).url
    except (OSError, ValueError) as error:
        raise RunError(
            f"{error}\nThe run is complete; push it later: clipvid push --model {output} --repo_id {hub.repo_id}"
        ) from error


class Selected(NamedTuple):
    """Outcome of a choice before training.

    Attributes:
        model: Config of the model to train, in place of `config.model`.
        record: Part `selection` of metrics.json. Empty in the trainings that the choice is made from.
    """

    model: ModelConfig
    record: dict[str, Any]


def finetune(
    config: FinetuneConfig,
    train: Manifest,
    val: Manifest,
    accelerator: Accelerator,
    output: Path,
    opened: OpenedVideos | None = None,
    selected: Selected | None = None,
) -> dict[str, Any]:
    """Train on one manifest, evaluate on the other, write the model folder, and return the figures.

    A finished run in `output` is not changed. An interrupted one is resumed.

    Args:
        config: Config of the run, which is recorded.
        train: Training videos.
        val: Evaluation videos.
        accelerator: The Accelerator.
        output: Folder of the run.
        opened: Videos that were opened before, which runs on the same videos share.
        selected: Model to train instead. If it has nothing to train, such as CLIP with text prompts and without
            adapters, it is evaluated and saved as it is.

    Raises:
        FileExistsError: `output` contains a run on other inputs, or `config.output_dir` one with another config.
    """
    hashes = input_hashes(config, train, val)
    done = load_finished_run(config, output, hashes, accelerator)
    if done is not None:
        return done
    recipe = for_list(config if selected is None else replace(config, model=selected.model), train)
    with preemption(config) as stop:
        model = fresh_model(recipe, train, accelerator)
        if selected is not None and not model.encoder.adapters():
            recipe = replace(recipe, optim=matching_groups(model, recipe.optim))
        hashes = with_backbone(hashes, model, config, output)
        set_first_bias(model, recipe, train, accelerator)
        opened = OpenedVideos() if opened is None else opened
        if selected is not None and not any(parameter.requires_grad for parameter in model.parameters()):
            trainer, features, first = None, None, None
        else:
            objective = classification(recipe, train)
            trainer = build_trainer(recipe, model, objective, train, accelerator, output, keep_features=True)
            features = trainer.features
            first = partial(train_head_first, trainer, model, objective, recipe.training)
        batch_size = config.training.per_device_eval_batch_size
        stored = None if features is None else features.stored
        loader = eval_loader(config.data, model, val, accelerator, batch_size, output_dir=output, features=stored)
        splits = [(train, trainer.loader)] if trainer is not None else []
        records = [opened.check(config.data, *videos, accelerator) for videos in (*splits, (val, loader))]
        with session(config, hashes, accelerator, output, stop) as run:
            for bad in records:
                bad.write()
            state = TrainState()
            if trainer is not None:
                state = _train(recipe, run, trainer, Validation(model, loader, val, features), first)
                weights = trainer.result()
                if is_sharded(model) or config.training.frozen_bf16:
                    model = fresh_model(recipe, train, accelerator)
                load_strictly(model.trained_state(), weights)
            predictions, figures = evaluate(accelerator, model, loader, val.classes, features)
            if state.best is not None:
                figures["selected"] = state.best | {"by": recipe.training.metric_for_best_model}
            if trainer is None:
                figures["trained"] = False
            if selected is not None:
                figures["selection"] = selected.record
            if features is not None:
                run.record["features"] = features.record()
            run.record["unreadable"] = count_unreadable(accelerator, output, records)
            write_run(output, model, state, predictions, figures, config, accelerator)
    is_fold = selected is not None and not selected.record
    hint = advice(figures, state.step, len(val.classes), config)
    if hint is not None and trainer is not None and not is_fold:
        accelerator.print(hint)
    return figures


def _train(
    config: FinetuneConfig,
    run: Session,
    trainer: Trainer,
    validation: Validation,
    first: Callable[[], None] | None,
) -> TrainState:
    """Train, and evaluate after the epochs that the config names."""
    training, accelerator = config.training, run.accelerator
    diagnosis = Diagnosis(config, validation, trainer) if training.diagnose else None

    def on_epoch_end(epoch: int) -> dict[str, Any]:
        last = epoch + 1 == training.epochs
        due = last or (epoch + 1) % training.eval_epochs == 0
        figures = diagnosis.figures(last) if diagnosis is not None and due else {}
        if not (training.load_best_model_at_end if last else due):
            return figures
        measured = validation.evaluate(accelerator)
        accelerator.print(f"epoch {epoch + 1}/{training.epochs}: {describe(measured)}")
        key, main = main_figure(measured)
        return {f"val_{key}": main["value"]} | figures

    return run.train(trainer, on_epoch_end, first)
