"""Training of a new head alone, before the rest of the model.

A linear head starts from random weights, and adapters start without an effect. If both train from the start, the head
needs most of the steps, and adapters learn from the errors of a random head. With a head that is trained on the first
features, training starts as accurate as averaged frames. The rate of adapters is then enough for the head. Kumar et al.
found this order (ICLR 2022, https://arxiv.org/abs/2202.10054).

Shapes: C clips, T frames, E embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import broadcast
from torch import Tensor, nn

from clipvid.model.encoder import FrozenFeatures
from clipvid.model.video_clip import VideoCLIP
from clipvid.training.config import FinetuneConfig, TrainingConfig
from clipvid.training.objectives import Classification, SeveralLabels
from clipvid.training.optim import build_optimizer, matching_groups
from clipvid.training.trainer import Trainer

_MOST_STEPS = 5000
_MOST_BYTES = 2**30  # of the features in memory


def head_is_first(model: nn.Module, training: TrainingConfig) -> bool:
    """Return True if the head is trained alone first, since it is new and reads pooled features."""
    if not isinstance(model, VideoCLIP) or not training.head_epochs:
        return False
    head = model.head
    is_open = any(parameter.requires_grad for parameter in head.parameters())
    return is_open and not (head.needs_text or head.needs_patches or head.is_trained)


def train_head_first(
    trainer: Trainer, model: VideoCLIP, objective: Classification | SeveralLabels, config: FinetuneConfig
) -> None:
    """Train the head on the features of the model before its training, if `head_is_first`.

    All processes call this together, before the trainer's first step.
    """
    training, head = config.training, model.head
    if not head_is_first(model, training):
        return
    accelerator = trainer.accelerator
    parameters = [parameter for parameter in head.parameters() if parameter.requires_grad]
    features, labels = _collect(trainer, model, max(training.cache_views, 1))
    batch = min(trainer.batches.global_batch, len(labels))
    steps = min(training.head_epochs * trainer.batches.steps_per_epoch, _MOST_STEPS)
    with _only(parameters, model):
        optimizer = build_optimizer(model, matching_groups(model, config.optim))
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


@contextmanager
def _only(parameters: list[nn.Parameter], model: nn.Module) -> Iterator[None]:
    """Let only these parameters of the model require gradients."""
    chosen = {id(parameter) for parameter in parameters}
    others = [each for each in model.parameters() if each.requires_grad and id(each) not in chosen]
    for each in others:
        each.requires_grad_(False)
    try:
        yield
    finally:
        for each in others:
            each.requires_grad_(True)


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
                features = model.encoder(ready["frames"], patches=False).frame_features.float()
            parts.append(accelerator.gather((features, ready["label"])))
            size += parts[-1][0].nbytes
    features, labels = (torch.cat(each) for each in zip(*parts, strict=True))
    return features, labels
