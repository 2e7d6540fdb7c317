"""Training of a new head alone, before the rest of the model.

A linear head starts from random weights, and adapters start without an effect. If both train from the start, the head
needs most of the steps, and adapters learn from the errors of a random head. With a head that is trained on the first
features, training starts as accurate as averaged frames. The rate of adapters is then enough for the head. Kumar et al.
found this order (ICLR 2022, https://arxiv.org/abs/2202.10054).

The head is fitted by L-BFGS, with a penalty on the length of its weights. Steps of AdamW end in longer weights as
soon as the clips are separated. Such a head has no errors left to learn from, and small updates of adapters change its
scores much.

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
from clipvid.training.config import FinetuneConfig, TrainingConfig
from clipvid.training.objectives import Classification, SeveralLabels
from clipvid.training.trainer import Trainer

_PENALTY = 2e-5
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
    clips: dict[str, Any] = {
        "frames": FrozenFeatures(features, len(model.encoder.layers) + 1),
        "label": labels,
        "index": torch.arange(len(labels), device=labels.device),
    }
    objective = replace(objective, mixup=0.0, cutmix=0.0)
    penalty = _Penalty(head, features.shape[-1], len(labels[0]) if isinstance(objective, SeveralLabels) else 1)
    optimizer = torch.optim.LBFGS(parameters, max_iter=training.head_epochs, line_search_fn="strong_wolfe")
    losses: list[float] = []

    def closure() -> Tensor:
        loss, _ = objective(model, clips, 0)
        total = loss + penalty()
        for parameter, gradient in zip(parameters, torch.autograd.grad(total, parameters), strict=True):
            parameter.grad = gradient
        losses.append(loss.item())
        return total.detach()

    optimizer.step(closure)
    for parameter in parameters:
        parameter.grad = None
        with torch.no_grad():
            parameter.copy_(broadcast(parameter.detach()))
    accelerator.print(
        f"the head was trained alone first, on the features of {len(labels)} clips, to a loss of {losses[-1]:.3f}"
    )


class _Penalty:
    """Penalty on weights of linears, and on the distance of other parameters from their first values.

    Args:
        head: The head.
        width: Size of the embedding. Scores grow with it for weights of the same length.
        terms: Number of losses for a clip, of which the objective is the mean.
    """

    def __init__(self, head: nn.Module, width: int, terms: int) -> None:
        linears = {id(module.weight) for module in head.modules() if isinstance(module, nn.Linear)}
        parameters = [parameter for parameter in head.parameters() if parameter.requires_grad]
        self._factor = _PENALTY * width / terms / 2
        self._pairs = [(each, 0.0 if id(each) in linears else each.detach().clone()) for each in parameters]

    def __call__(self) -> Tensor:
        """Return the penalty."""
        return self._factor * torch.stack([(each - first).square().sum() for each, first in self._pairs]).sum()


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
