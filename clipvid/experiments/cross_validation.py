"""Fine-tuning under `data.protocol`, as one run or one run per held-out group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from clipvid import RunError
from clipvid.data.batches import check_fills_batch
from clipvid.data.manifest import Manifest
from clipvid.evaluation.loop import Predictions
from clipvid.evaluation.summary import summarize
from clipvid.experiments.protocols import Holdout, Part, build_protocol
from clipvid.experiments.selection import select_model
from clipvid.files import printable
from clipvid.training.config import FinetuneConfig
from clipvid.training.finetune import finetune
from clipvid.training.session import finished, write_results
from clipvid.training.unreadable import OpenedVideos


def finetune_protocol(
    config: FinetuneConfig, train: Manifest, val: Manifest, accelerator: Accelerator, output: Path
) -> dict[str, Any]:
    """Fine-tune under `data.protocol` and return the figures.

    `holdout` trains once, in `output`, after the choice that `config.selection` describes.
    `leave_one_group_out` trains once per fold, in a folder below `output`, and writes predictions and figures for all
    videos together.
    """
    protocol = build_protocol(config.data.protocol)
    parts = protocol.parts(train, val, trained=True)
    if isinstance(protocol, Holdout):
        selected = select_model(config, train, accelerator, output)
        return finetune(config, train, val, accelerator, output, selected=selected)
    smallest = min(len(part.train or ()) for part in parts) * config.data.repeats
    size, steps = config.training.per_device_train_batch_size, config.training.gradient_accumulation_steps
    check_fills_batch(smallest, size, accelerator.num_processes, steps)
    opened = OpenedVideos()
    folds = [_finetune_fold(config, part, accelerator, output / part.run, opened) for part in parts]
    columns = [torch.cat(column) for column in zip(*folds, strict=True)]
    order = columns[0].argsort()
    pooled = Predictions(*(column[order] for column in columns))
    figures = summarize(pooled, train.classes)
    if accelerator.is_main_process:
        write_results(output, pooled, figures, config, accelerator)
    accelerator.wait_for_everyone()
    return figures


def _finetune_fold(
    config: FinetuneConfig, part: Part, accelerator: Accelerator, folder: Path, opened: OpenedVideos
) -> Predictions:
    """Return the predictions for one fold, with indices into the manifest of all folds."""
    assert part.train is not None
    assert part.places is not None
    name = printable(part.run.replace("_", " ", 1))
    accelerator.print(f"{name}: {len(part.train)} videos to train on, {len(part.test)} held out")
    finetune(config, part.train, part.test, accelerator, folder, opened)
    accelerator.wait_for_everyone()
    done = finished(folder)
    if done is None:
        raise RunError(f"{folder} has no metrics.json although its run has ended; start the same command again")
    accelerator.free_memory()
    predictions = done[0]
    return predictions._replace(indices=torch.tensor(part.places)[predictions.indices])
