"""Cost of the rows of a ladder: parameters, multiply-adds, time and memory, measured in one run."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from clipvid import InputError
from clipvid.benchmarks.adapters import BASELINE, AdapterCost, compare
from clipvid.benchmarks.cost import Pass, count_macs, describe_machine, peak_memory, time_passes, trained_parameters
from clipvid.experiments.run import Recipe
from clipvid.files import write_json
from clipvid.model.factory import build_model
from clipvid.model.video_clip import VideoCLIP
from clipvid.training.objectives import Classification


def measured_once(
    file: Path, recipes: dict[str, Recipe], classes: list[str], templates: str | list[str] | None, repeats: int
) -> dict[str, dict[str, Any]]:
    """Return costs by row, from `file` if it has those of the same models. New ones are written to it.

    A new row causes a new measurement of all rows, since ratios are valid within one run.
    """
    key = {row: asdict(recipe.model) | {"batch": _batch_size(recipe)} for row, recipe in recipes.items()}
    asked = {"models": json.loads(json.dumps(key)), "repeats": repeats, "machine": describe_machine()}
    record = json.loads(file.read_text()) if file.is_file() else {}
    if record.get("asked") != asked:
        record = {"asked": asked, "rows": _costs_by_row(_measure(recipes, classes, templates, repeats))}
        write_json(file, record)
    rows: dict[str, dict[str, Any]] = record["rows"]
    return rows


def _batch_size(recipe: Recipe) -> int:
    return recipe.training.per_device_train_batch_size


def _measure(
    recipes: dict[str, Recipe], classes: list[str], templates: str | list[str] | None, repeats: int
) -> list[AdapterCost]:
    device, passes = Accelerator().device, {}
    for row, recipe in recipes.items():
        torch.manual_seed(recipe.seed)
        model = build_model(recipe.model, classes, templates).to(device)
        passes[row, False] = Pass(model, partial(model.encode_video, normalized=True))
        if trained_parameters(model):
            passes[row, True] = Pass(model, partial(_loss, model, len(classes)), training=True)
    shapes = {row: _shape(passes[row, False].model, recipe) for row, recipe in recipes.items()}
    other = [row for row in shapes if shapes[row] != shapes[BASELINE]]
    if other:
        raise InputError(
            f"rows: costs are measured on the same clips, but {BASELINE!r} takes {shapes[BASELINE]} [B, T, 3, S, S] "
            f"and {other[0]!r} {shapes[other[0]]}; compare other sizes in a separate ladder"
        )
    frames = torch.randn(shapes[BASELINE], device=device)
    macs = {key: count_macs(one, frames[:1]) for key, one in passes.items()}
    memory = {row: peak_memory(one, frames) for (row, training), one in passes.items() if training}
    sizes = {row: trained_parameters(one.model) for (row, training), one in passes.items() if training}
    return compare(time_passes(passes, frames, repeats), macs, memory, sizes, {})


def _shape(model: nn.Module, recipe: Recipe) -> tuple[int, ...]:
    assert isinstance(model, VideoCLIP)
    return _batch_size(recipe), model.num_frames, 3, *model.backbone.vision.image_shape


def _loss(model: VideoCLIP, classes: int, frames: Tensor) -> Tensor:
    batch = {"frames": frames, "label": torch.zeros(len(frames), dtype=torch.long, device=frames.device)}
    return Classification(classes, seed=0)(model, batch, epoch=0)[0]


def _costs_by_row(rows: list[AdapterCost]) -> dict[str, dict[str, Any]]:
    """Return the reported costs by row. None is a cost that could not be measured.

    `parameters` is the number of trained parameters. `gflops` is the cost of a clip's forward pass, twice its
    multiply-adds. `forward` and `training` are clips/s relative to `none`. `memory` is the peak of a training step in
    bytes, without weights and frames, and `memory_ratio` is relative to `none`.
    """
    base = next(row for row in rows if row.name == BASELINE)
    return {
        row.name: {
            "parameters": row.trained_parameters,
            "gflops": 2 * row.forward.macs / 1e9,
            "forward": base.forward.time_ratio / row.forward.time_ratio,
            "training": base.training.time_ratio / row.training.time_ratio if base.training and row.training else None,
            "memory": row.peak_memory,
            "memory_ratio": row.peak_memory / base.peak_memory if row.peak_memory and base.peak_memory else None,
            "seconds": {"forward": row.forward.seconds, "training": row.training.seconds if row.training else None},
        }
        for row in rows
    }
