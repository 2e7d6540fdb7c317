"""Fine-tuning on labeled video."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import Accelerator

from clipvid import InputError, RunError
from clipvid.backbone.state_dicts import load_strictly
from clipvid.data.manifest import Manifest
from clipvid.data.splits import eval_loader
from clipvid.distributed import is_sharded
from clipvid.evaluation.summary import describe, evaluate
from clipvid.hub.push import check_login, check_repo_id, push_to_hub
from clipvid.training.advice import advice
from clipvid.training.build import build_trainer, classification
from clipvid.training.config import FinetuneConfig
from clipvid.training.session import (
    fresh_model,
    input_hashes,
    load_finished_run,
    preemption,
    session,
    with_backbone,
    write_run,
)
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


def finetune(
    config: FinetuneConfig,
    train: Manifest,
    val: Manifest,
    accelerator: Accelerator,
    output: Path,
    opened: OpenedVideos | None = None,
) -> dict[str, Any]:
    """Train on one manifest, evaluate on the other, write the model folder, and return the figures.

    A finished run in `output` is not changed. An interrupted one is resumed. Runs on the same videos share `opened`.

    Raises:
        FileExistsError: `output` contains a run on other inputs, or `config.output_dir` one with another config.
    """
    hashes = input_hashes(config, train, val)
    done = load_finished_run(config, output, hashes, accelerator)
    if done is not None:
        return done
    with preemption(config) as stop:
        model = fresh_model(config, train, accelerator)
        hashes = with_backbone(hashes, model, config, output)
        objective = classification(config, len(train.classes))
        trainer = build_trainer(config, model, objective, train, accelerator, output, keep_features=True)
        batch_size = config.training.per_device_eval_batch_size
        features = trainer.features
        stored = None if features is None else features.stored
        loader = eval_loader(config.data, model, val, accelerator, batch_size, output_dir=output, features=stored)
        opened = OpenedVideos() if opened is None else opened
        records = [
            opened.check(config.data, *videos, accelerator) for videos in ((train, trainer.loader), (val, loader))
        ]
        best_wanted = config.training.load_best_model_at_end

        def on_epoch_end(epoch: int) -> dict[str, Any]:
            last = epoch + 1 == config.training.epochs
            if not (best_wanted if last else (epoch + 1) % config.training.eval_epochs == 0):
                return {}
            _, figures = evaluate(accelerator, model, loader, val.classes, features)
            accelerator.print(f"epoch {epoch + 1}/{config.training.epochs}: {describe(figures)}")
            return {"val_top1": figures["top1"]["value"]}

        with session(config, hashes, accelerator, output, stop) as run:
            for bad in records:
                bad.write()
            state = run.train(trainer, on_epoch_end)
            weights = trainer.result()
            if is_sharded(model) or config.training.frozen_bf16:
                model = fresh_model(config, train, accelerator)
            load_strictly(model.trained_state(), weights)
            predictions, figures = evaluate(accelerator, model, loader, val.classes, features)
            if state.best is not None:
                figures["selected"] = state.best | {"by": config.training.metric_for_best_model}
            if features is not None:
                run.record["features"] = features.record()
            run.record["unreadable"] = count_unreadable(accelerator, output, records)
            write_run(output, model, state, predictions, figures, config, accelerator)
    hint = advice(figures, state.step, len(val.classes), config)
    if hint is not None:
        accelerator.print(hint)
    return figures
