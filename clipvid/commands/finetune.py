"""Fine-tune on labelled video: `accelerate launch scripts/finetune.py --config configs/demo.yaml`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from clipvid.card import write_card
from clipvid.config import (
    FinetuneConfig,
    build_accelerator,
    build_finetune_model,
    build_trainer,
    claim_output,
    config_record,
    eval_loader,
    load_split,
    parse_config,
)
from clipvid.data.manifest import Manifest, leave_one_group_out
from clipvid.engine import Predictions
from clipvid.evaluation import describe, evaluate, summarise, write_json


def main(args: list[str] | None = None) -> None:
    """The verb."""
    config = parse_config(FinetuneConfig, args, "clipvid finetune")
    accelerator = build_accelerator(config.training, config.output_dir)
    output = Path(config.output_dir)
    with accelerator.main_process_first():
        train, val = load_split(config.data, "train"), load_split(config.data, "val")
    if accelerator.is_main_process:
        claim_output(output, config)
    accelerator.wait_for_everyone()
    if config.data.protocol == "holdout":
        figures = finetune(config, train, val, accelerator, output)
    else:
        figures = cross_validate(config, train.joined(val), accelerator, output)
    accelerator.print(f"{describe(figures)} -> {output}/metrics.json")
    accelerator.end_training()


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
    torch.manual_seed(config.seed)
    model = build_finetune_model(config, train.class_names)
    trainer = build_trainer(config, model, train, accelerator, output)
    loader = eval_loader(config.data, model, val, accelerator, config.training.per_device_eval_batch_size)
    if accelerator.log_with:
        accelerator.init_trackers("logs")

    def on_epoch_end(epoch: int) -> dict[str, Any]:
        if (epoch + 1) % config.training.eval_epochs or epoch + 1 == config.training.epochs:
            return {}
        _, figures = evaluate(accelerator, model, loader, val.classes)
        accelerator.print(f"epoch {epoch + 1}/{config.training.epochs}: {describe(figures)}")
        return {"val_top1": figures["top1"]["value"]}

    trainer.on_epoch_end = on_epoch_end
    state = trainer.run()
    predictions, figures = evaluate(accelerator, model, loader, val.classes)
    if accelerator.is_main_process:
        model.save_pretrained(output)
        write_json(output / "history.json", state.history)
        write_results(output, predictions, figures, config, accelerator)
        write_card(output)
    accelerator.wait_for_everyone()
    return figures


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
