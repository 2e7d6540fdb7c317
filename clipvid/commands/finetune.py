"""Fine-tune on labelled video: `accelerate launch scripts/finetune.py --config configs/demo.yaml`."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from clipvid.card import write_card
from clipvid.config import (
    FinetuneConfig,
    VideoRunConfig,
    build_accelerator,
    build_finetune_model,
    build_trainer,
    claim_output,
    classification,
    config_record,
    parse_config,
)
from clipvid.data.manifest import Manifest, check_splits, leave_one_group_out
from clipvid.evaluation import describe, evaluate, summarise, write_json
from clipvid.hub import weights_hash
from clipvid.model import VideoCLIP
from clipvid.prediction import Predictions
from clipvid.preemption import Preemption
from clipvid.push import check_login, check_repo_id, push_to_hub
from clipvid.record import recorded
from clipvid.sharding import is_sharded
from clipvid.state_dicts import load_strictly
from clipvid.videos import eval_loader, load_split


def main(args: list[str] | None = None) -> None:
    """The verb."""
    config = parse_config(FinetuneConfig, args, "clipvid finetune")
    accelerator = build_accelerator(config.training, config.output_dir)
    output = Path(config.output_dir)
    if config.hub.push_to_hub:
        check_hub(config)
    with accelerator.main_process_first():
        train, val = load_split(config.data, "train"), load_split(config.data, "val")
    check_splits(train, val)
    if accelerator.is_main_process:
        claim_output(output, config)
    accelerator.wait_for_everyone()
    if config.data.protocol == "holdout":
        figures = finetune(config, train, val, accelerator, output)
    else:
        figures = cross_validate(config, train.joined(val), accelerator, output)
    accelerator.print(f"{describe(figures)} -> {output}/metrics.json")
    end_trackers(accelerator)
    if config.hub.push_to_hub and accelerator.is_main_process:
        print(push_run(config, output))


def check_hub(config: FinetuneConfig) -> None:
    """Find out before the training whether the push after it can work."""
    if config.data.protocol != "holdout":
        raise ValueError(
            f"hub.push_to_hub: {config.data.protocol} makes a model for each group; leave it off, and push the one "
            "that you want with `clipvid push`"
        )
    if config.hub.repo_id is None:
        raise ValueError("hub.push_to_hub needs hub.repo_id: user/name")
    check_repo_id(config.hub.repo_id)
    check_login()


def push_run(config: FinetuneConfig, output: Path) -> str:
    """Push the model folder of a finished run; the URL of the commit."""
    hub = config.hub
    assert hub.repo_id is not None
    try:
        return push_to_hub(output, hub.repo_id, hub.private, hub.revision).url
    except (OSError, ValueError) as error:
        raise type(error)(
            f"{error}\nThe run is finished and whole; push it later: "
            f"clipvid push --model {output} --repo_id {hub.repo_id}"
        ) from error


def finetune(
    config: FinetuneConfig, train: Manifest, val: Manifest, accelerator: Accelerator, output: Path
) -> dict[str, Any]:
    """Train on one manifest, evaluate on the other, write the model folder; returns the figures.

    A finished run in `output` is left as it is, an interrupted one goes on.
    """
    done = finished(output)
    if done is not None:
        accelerator.print(f"{output} is finished already")
        return done[1]
    patience, hashes = timedelta(seconds=config.training.ddp_timeout), input_hashes(config, train, val)
    with Preemption(patience) as stop, recorded(output, accelerator, config_record(config), hashes) as session:
        return _finetune(config, train, val, accelerator, output, stop, session)


def _finetune(
    config: FinetuneConfig,
    train: Manifest,
    val: Manifest,
    accelerator: Accelerator,
    output: Path,
    stop: Preemption,
    session: dict[str, Any],
) -> dict[str, Any]:
    model = fresh_model(config, train, accelerator)
    objective = classification(config, len(train.classes))
    trainer = build_trainer(config, model, objective, train, accelerator, output)
    batch_size = config.training.per_device_eval_batch_size
    loader = eval_loader(config.data, model, val, accelerator, batch_size, output_dir=output)
    if accelerator.log_with:
        accelerator.init_trackers("logs")
    best_wanted = config.training.load_best_model_at_end

    def on_epoch_end(epoch: int) -> dict[str, Any]:
        last = epoch + 1 == config.training.epochs
        if not (best_wanted if last else (epoch + 1) % config.training.eval_epochs == 0):
            return {}
        _, figures = evaluate(accelerator, model, loader, val.classes)
        accelerator.print(f"epoch {epoch + 1}/{config.training.epochs}: {describe(figures)}")
        return {"val_top1": figures["top1"]["value"]}

    trainer.on_epoch_end, trainer.stop = on_epoch_end, stop
    try:
        state = trainer.run()
    finally:
        session |= trainer.throughput()
    weights = trainer.result()
    if is_sharded(model) or config.training.frozen_bf16:
        model = fresh_model(config, train, accelerator)
    load_strictly(model.trained_state(), weights)
    predictions, figures = evaluate(accelerator, model, loader, val.classes)
    if state.best is not None:
        figures["selected"] = state.best | {"by": config.training.metric_for_best_model}
    if accelerator.is_main_process:
        model.save_pretrained(output)
        write_json(output / "history.json", state.history)
        write_results(output, predictions, figures, config, accelerator)
        write_card(output)
    accelerator.wait_for_everyone()
    return figures


def input_hashes(config: VideoRunConfig, train: Manifest, val: Manifest) -> dict[str, str]:
    """Of the lists of videos, and of the weights that training starts from."""
    hashes = {"train": train.hash, "val": val.hash}
    if config.model.init_from is not None:
        hashes["model.init_from"] = weights_hash(config.model.init_from)
    return hashes


def fresh_model(config: VideoRunConfig, labelled: Manifest, accelerator: Accelerator) -> VideoCLIP:
    """The model before training, the same every time."""
    torch.manual_seed(config.seed)
    return build_finetune_model(config, labelled.class_names).to(accelerator.device)


def end_trackers(accelerator: Accelerator) -> None:
    """Close the trackers, whose troubles take nothing from a finished run."""
    try:
        accelerator.end_training()
    except Exception as error:
        accelerator.print(f"the tracker could not be closed ({error!r})")


def cross_validate(
    config: FinetuneConfig, manifest: Manifest, accelerator: Accelerator, output: Path
) -> dict[str, Any]:
    """Hold out each group in turn, each fold in a folder of its own; figures over all held-out videos together."""
    folds: list[Predictions] = []
    for group, train, val in leave_one_group_out(manifest):
        folder = output / f"fold_{group}"
        accelerator.print(f"fold {group}: {len(train)} videos to train on, {len(val)} held out")
        finetune(config, train, val, accelerator, folder)
        accelerator.wait_for_everyone()
        done = finished(folder)
        if done is None:
            raise RuntimeError(f"{folder} lost its metrics.json while the run was going on")
        folds.append(done[0])
        accelerator.free_memory()
    pooled = Predictions(*(torch.cat(parts) for parts in zip(*folds, strict=True)))
    figures = summarise(pooled, manifest.classes)
    if accelerator.is_main_process:
        write_results(output, pooled, figures, config, accelerator)
    accelerator.wait_for_everyone()
    return figures


def write_results(
    output: Path, predictions: Predictions, figures: dict[str, Any], config: Any, accelerator: Accelerator
) -> None:
    """predictions.json (indices, labels, scores) and, last of all, metrics.json (figures, processes, config)."""
    rows = {name: getattr(predictions, name).tolist() for name in Predictions._fields}
    write_json(output / "predictions.json", rows)
    record = {"processes": accelerator.num_processes, "config": config_record(config)}
    write_json(output / "metrics.json", figures | record)


def finished(output: Path) -> tuple[Predictions, dict[str, Any]] | None:
    """What a finished run left; metrics.json is written last of all."""
    if not (output / "metrics.json").is_file():
        return None
    rows = json.loads((output / "predictions.json").read_text())
    predictions = Predictions(*(torch.tensor(rows[name]) for name in Predictions._fields))
    return predictions, json.loads((output / "metrics.json").read_text())
