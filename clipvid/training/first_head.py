"""Training of a new head alone, before the rest of the model.

A linear head starts from random weights, and adapters start without an effect. If both train from the start, the head
needs most of the steps, and adapters learn from the errors of a random head. With a head that is trained on the first
features, training starts as accurate as averaged frames. The rate of adapters is then enough for the head. Kumar et al.
found this order (ICLR 2022, https://arxiv.org/abs/2202.10054).

The head is fitted by L-BFGS, with a penalty on the length of its weights. Once the clips are separated, AdamW only
lengthens them, and small changes of the features then change the scores much.

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

_PENALTY = 2e-5  # on the squared length of weights, or distance from first values, for each unit of width
_MOST_BYTES = 2**30  # of the features in memory


def head_is_first(model: nn.Module, training: TrainingConfig) -> bool:
    """Return True if the head is trained alone first, since it is new and reads pooled features."""
    if not isinstance(model, VideoCLIP) or not training.head_epochs:
        return False
    head = model.head
    is_open = any(parameter.requires_grad for parameter in head.parameters())
    return is_open and not (head.needs_text or head.needs_patches or head.is_trained)


def train_head_first(
    trainer: Trainer, model: VideoCLIP, objective: Classification | SeveralLabels, training: TrainingConfig
) -> None:
    """Train the head on the features of the model before its training, if `head_is_first`.

    All processes call this together, before the trainer's first step.
    """
    if not head_is_first(model, training):
        return
    accelerator, head = trainer.accelerator, model.head
    parameters = [parameter for parameter in head.parameters() if parameter.requires_grad]
    features, labels = _collect(trainer, model, max(training.cache_views, 1))
    clips: dict[str, Any] = {
        "frames": FrozenFeatures(features, len(model.encoder.layers) + 1),
        "label": labels,
        "index": torch.arange(len(labels), device=labels.device),
    }
    objective = replace(objective, mixup=0.0, cutmix=0.0)
    linears = {id(module.weight) for module in head.modules() if isinstance(module, nn.Linear)}
    anchors = [0.0 if id(each) in linears else each.detach().clone() for each in parameters]
    # The loss of several labels is a mean over classes, and so is the penalty.
    factor = _PENALTY * features.shape[-1] / (labels.shape[1] if isinstance(objective, SeveralLabels) else 1) / 2
    optimizer = torch.optim.LBFGS(parameters, max_iter=training.head_epochs, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        loss, _ = objective(model, clips, 0)
        distances = [(each - anchor).square().sum() for each, anchor in zip(parameters, anchors, strict=True)]
        total = loss + factor * torch.stack(distances).sum()
        for parameter, gradient in zip(parameters, torch.autograd.grad(total, parameters), strict=True):
            parameter.grad = gradient
        return total.detach()

    optimizer.step(closure)
    for parameter in parameters:
        parameter.grad = None
        with torch.no_grad():
            parameter.copy_(broadcast(parameter.detach()))
    with torch.no_grad():
        loss, _ = objective(model, clips, 0)
    accelerator.print(
        f"the head was trained alone first, on the features of {len(labels)} clips, to a loss of {loss.item():.3f}"
    )


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
