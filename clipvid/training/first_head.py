"""Training of a new head alone, before the rest of the model.

A linear head starts from random weights, and adapters start without an effect. If both train from the start, the head
needs most of the steps, and adapters learn from the errors of a random head. With a head that is trained on the first
features, training starts as accurate as averaged frames. The order is that of Kumar et al. (ICLR 2022,
https://arxiv.org/abs/2202.10054).

Shapes: C clips, T frames, E embedding.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import broadcast
from torch import Tensor, nn

from clipvid.model.encoder import FrozenFeatures
from clipvid.model.video_clip import VideoCLIP
from clipvid.training.config import TrainingConfig
from clipvid.training.objectives import Classification, SeveralLabels
from clipvid.training.trainer import Trainer

_MOST_STEPS = 5000
_MOST_BYTES = 2**30  # of the features in memory


def train_head_first(
    trainer: Trainer, model: VideoCLIP, objective: Classification | SeveralLabels, training: TrainingConfig
) -> None:
    """Train the head on the features of the model before its training, if it is new and reads pooled features.

    All processes call this together, before the trainer's first step.
    """
    head = model.head
    parameters = [parameter for parameter in head.parameters() if parameter.requires_grad]
    if not training.head_epochs or head.needs_text or head.needs_patches or head.is_trained or not parameters:
        return
    accelerator = trainer.accelerator
    features, labels = _collect(trainer, model, max(training.cache_views, 1))
    batch = min(trainer.batches.global_batch, len(labels))
    steps = min(training.head_epochs * trainer.batches.steps_per_epoch, _MOST_STEPS)
    rates = {id(each): group for group in trainer.optimizer.param_groups for each in group["params"]}
    groups = [_group(parameter, rates[id(parameter)]) for parameter in parameters]
    optimizer = torch.optim.AdamW(groups, betas=trainer.optimizer.defaults["betas"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    objective = replace(objective, mixup=0.0, cutmix=0.0)
    depth, shown = len(model.encoder.layers) + 1, torch.Generator().manual_seed(trainer.seed)
    with torch.random.fork_rng(devices=[] if accelerator.device.type == "cpu" else None):
        torch.manual_seed(trainer.seed)
        head.train()
        for _ in range(steps):
            rows = torch.randperm(len(labels), generator=shown)[:batch].to(labels.device)
            clips: dict[str, Any] = {
                "frames": FrozenFeatures(features[rows], depth),
                "label": labels[rows],
                "index": rows,
            }
            with accelerator.autocast():
                loss, _ = objective(model, clips, 0)
            gradients = torch.autograd.grad(loss, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            schedule.step()
    for parameter in parameters:
        parameter.grad = None
        with torch.no_grad():
            parameter.copy_(broadcast(parameter.detach()))
    accelerator.print(f"the head was trained alone first: {steps} steps on the features of {len(labels)} clips")


def _group(parameter: nn.Parameter, settings: dict[str, Any]) -> dict[str, Any]:
    return {"params": [parameter], "lr": settings["initial_lr"], "weight_decay": settings["weight_decay"]}


@torch.no_grad()
def _collect(trainer: Trainer, model: VideoCLIP, passes: int) -> tuple[Tensor, Tensor]:
    """Return frame features [C, T, E] and labels of the training clips of all processes, from one or more epochs."""
    accelerator = trainer.accelerator
    parts: list[tuple[Tensor, Tensor]] = []
    size = 0
    model.eval()
    for epoch in range(passes):
        trainer.batches.set_position(epoch, 0)
        for batch in trainer.loader:
            if size > _MOST_BYTES:
                break
            ready = trainer.ready(batch)
            with accelerator.autocast():
                features = model.encoder(ready["frames"]).frame_features.float()
            parts.append(accelerator.gather((features, ready["label"])))
            size += parts[-1][0].nbytes
    features, labels = (torch.cat(each) for each in zip(*parts, strict=True))
    return features, labels
