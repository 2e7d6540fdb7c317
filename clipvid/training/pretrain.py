"""Training of adapters on video without labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from clipvid import InputError
from clipvid.backbone.state_dicts import load_strictly
from clipvid.data.lists.samples import Stored
from clipvid.data.manifest import ClassInfo, Manifest, load_manifest
from clipvid.data.splits import check_leaks, eval_loader, load_splits
from clipvid.evaluation.summary import describe, evaluate
from clipvid.evaluation.weight_space import zero_shot_model
from clipvid.runs.output_folder import check_output
from clipvid.training.build import build_trainer
from clipvid.training.pretext_tasks import resolve_pretext_tasks
from clipvid.training.pretrain_config import PretrainConfig
from clipvid.training.self_supervised import SelfSupervisedModel, SelfSupervisedObjective
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

UNLABELED = (ClassInfo(0, "unlabeled"),)


def pretrain(config: PretrainConfig, accelerator: Accelerator) -> dict[str, Any]:
    """Train adapters without labels, write the model folder, and return the figures of metrics.json.

    The figures are zero-shot on `val`; `before` contains those of the plain CLIP. A finished run in `output_dir` is not
    changed. An interrupted one is resumed.

    Raises:
        InputError: FSDP is on, or the metric for the best model is not measured.
        ManifestError: A video to learn from is also in `data.val`.
        FileExistsError: `output_dir` contains a run with another config or other inputs.
    """
    if accelerator.is_fsdp2:
        raise InputError("training without labels does not work with FSDP: teacher and student share blocks; use DDP")
    output = Path(config.output_dir)
    check_output(output, config)
    with accelerator.main_process_first():
        train, val = load_videos(config)
    check_leaks(config.data, train, val, accelerator)
    check_metric(config, val)
    hashes = input_hashes(config, train, val)
    done = load_finished_run(config, output, hashes, accelerator)
    if done is not None:
        return done
    with preemption(config) as stop:
        tasks = resolve_pretext_tasks(config.objectives)
        model = fresh_model(config, val, accelerator)
        hashes = with_backbone(hashes, model, config, output)
        student = SelfSupervisedModel(model, tasks).to(accelerator.device)
        trainer = build_trainer(
            config,
            student,
            SelfSupervisedObjective(config.seed, tuple(tasks)),
            train,
            accelerator,
            output,
            keep_features=student.only_reorders,
        )
        loader = eval_loader(
            config.data, model, val, accelerator, config.training.per_device_eval_batch_size, output_dir=output
        )
        opened = OpenedVideos()
        records = [
            opened.check(config.data, *videos, accelerator) for videos in ((train, trainer.loader), (val, loader))
        ]

        def on_epoch_end(epoch: int) -> dict[str, Any]:
            warning = collapse(trainer.state.history)
            if warning:
                accelerator.print(warning)
            if (epoch + 1) % config.training.eval_epochs and epoch + 1 < config.training.epochs:
                return {}
            _, figures = evaluate(accelerator, model, loader, val.classes)
            accelerator.print(f"epoch {epoch + 1}/{config.training.epochs}, zero-shot: {describe(figures)}")
            return {f"val_{name}": figures[name]["value"] for name in ("top1", "object") if name in figures}

        with session(config, hashes, accelerator, output, stop) as run:
            for bad in records:
                bad.write()
            state = run.train(trainer, on_epoch_end)
            weights = trainer.result()
            if config.training.frozen_bf16:
                model = fresh_model(config, val, accelerator)
                student = SelfSupervisedModel(model, tasks).to(accelerator.device)
            load_strictly(student.trained_state(), weights)
            predictions, figures = evaluate(accelerator, model, loader, val.classes)
            figures["before"] = evaluate(accelerator, zero_shot_model(model), loader, val.classes)[1]
            if trainer.features is not None:
                run.record["features"] = trainer.features.record()
            run.record["unreadable"] = count_unreadable(accelerator, output, records)
            write_run(output, model, state, predictions, figures, config, accelerator)
    return figures


def check_metric(config: PretrainConfig, val: Manifest) -> None:
    """Check that the evaluation measures the metric for the best model.

    Raises:
        InputError: The metric is `val_object`, and a class of `data.val` has no object.
    """
    chosen = config.training.load_best_model_at_end and config.training.metric_for_best_model == "val_object"
    if chosen and not all("object" in info.attributes for info in val.classes):
        raise InputError(
            "training.metric_for_best_model='val_object': the classes of data.val have no column `object`; choose "
            "'val_top1'"
        )


def load_videos(config: PretrainConfig) -> tuple[Manifest, Manifest]:
    """Return all videos to learn from, as of one class, and those of `data.val`.

    Raises:
        InputError: A list has several labels per video.
    """
    train, val = load_splits(config.data)
    if val.is_multi_label:
        raise InputError(
            "data.val has several labels per video (column labels), but zero-shot accuracy needs one; use the column "
            "label in data.train and data.val"
        )
    samples = [replace(sample, label=0) for sample in train.samples]
    for more in config.also:
        manifest = load_manifest(more.root, more.videos, more.classes, check_files=config.data.check_files)
        for sample in manifest.samples:
            sample = replace(sample, labels=None)
            media = sample.media or Stored(str(manifest.file(sample)))
            samples.append(replace(sample, path=f"{Path(more.root).name}/{sample.path}", label=0, media=media))
    return Manifest(tuple(samples), UNLABELED, train.root), val


def collapse(history: list[dict[str, Any]]) -> str | None:
    """Return a warning if features of the last log entry vary much less than CLIP's for the same clips."""
    last = next((entry for entry in reversed(history) if "effective_rank" in entry), None)
    if last is None:
        return None
    fallen = [name for name in ("feature_std", "effective_rank") if last[name] < last[f"clip_{name}"] / 2]
    listed = ", ".join(f"{name} is {last[name]:.3g}, that of CLIP {last[f'clip_{name}']:.3g}" for name in fallen)
    return (
        f"the features are collapsing: {listed}; lower optim.lr or raise the weight of distillation" if listed else None
    )
