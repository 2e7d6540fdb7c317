"""Training objectives, which map (model, batch) to a loss and its named parts.

Shapes: B clips, T frames, S image side, K classes, L text length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipvid.data.sampling import keyed_generator
from clipvid.data.transforms import mix

Batch = dict[str, Tensor]
Losses = dict[str, Tensor]


class Objective(Protocol):
    """Objective of a training.

    It is called with the model (possibly wrapped for distributed training), a batch with normalized frames, and the
    epoch. It returns the loss to minimize and its detached parts for the log.
    """

    def __call__(self, model: nn.Module, batch: Batch, epoch: int) -> tuple[Tensor, Losses]:
        """Return the loss and its detached parts."""


@dataclass(frozen=True)
class Classification:
    """Cross entropy plus the auxiliary losses of the adapters, each with weight 1.

    Attributes:
        num_classes: Number of classes K.
        seed: Seed of the MixUp draws.
        label_smoothing: Probability mass spread over all classes.
        mixup: Alpha of MixUp, 0 to disable.
        cutmix: Alpha of CutMix, 0 to disable.
        class_weights: Weight of each class in the loss, or None for equal ones.
    """

    num_classes: int
    seed: int
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    class_weights: tuple[float, ...] | None = None

    def __call__(self, model: nn.Module, batch: Batch, epoch: int) -> tuple[Tensor, Losses]:
        """Return the loss of a batch and its detached parts."""
        frames, targets = batch["frames"], F.one_hot(batch["label"], self.num_classes).float()
        if self.mixup or self.cutmix:
            generator = keyed_generator(self.seed, epoch, *batch["index"].tolist())
            frames, targets = mix(frames, targets, self.mixup, self.cutmix, generator)
        output = model(frames, normalized=True, patches=False)
        logits = _at_least_float32(output.logits)
        weight = None if self.class_weights is None else logits.new_tensor(self.class_weights)
        targets = targets.to(logits.dtype)
        error = F.cross_entropy(logits, targets, weight, label_smoothing=self.label_smoothing)
        return total_loss({"cross_entropy": error} | output.losses)


@dataclass(frozen=True)
class SeveralLabels:
    """Binary cross entropy of every class, plus the auxiliary losses of the adapters, each with weight 1.

    The loss is the mean over videos and classes. Labels of a batch are bool [B, K].

    Attributes:
        seed: Seed of the MixUp draws.
        label_smoothing: Share s of smoothing: a target t becomes (1 - s) t + s / 2.
        mixup: Alpha of MixUp, 0 to disable.
        cutmix: Alpha of CutMix, 0 to disable.
        positive_weights: Weight of the videos with each label in the loss, or None for 1.
    """

    seed: int
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    positive_weights: tuple[float, ...] | None = None

    def __call__(self, model: nn.Module, batch: Batch, epoch: int) -> tuple[Tensor, Losses]:
        """Return the loss of a batch and its detached parts."""
        frames, targets = batch["frames"], batch["label"].float()
        if self.mixup or self.cutmix:
            generator = keyed_generator(self.seed, epoch, *batch["index"].tolist())
            frames, targets = mix(frames, targets, self.mixup, self.cutmix, generator)
        output = model(frames, normalized=True, patches=False)
        logits = _at_least_float32(output.logits)
        targets = targets.to(logits.dtype) * (1 - self.label_smoothing) + self.label_smoothing / 2
        weight = None if self.positive_weights is None else logits.new_tensor(self.positive_weights)
        error = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weight)
        return total_loss({"binary_cross_entropy": error} | output.losses)


def positive_weights(labels: Sequence[Sequence[int]], num_classes: int) -> tuple[float, ...]:
    """Return the number of videos without each label, per video with it. Classes without videos get 1."""
    counts = torch.bincount(torch.tensor([label for own in labels for label in own]).long(), minlength=num_classes)
    return tuple((len(labels) - count) / count if count else 1.0 for count in counts.tolist())


def balanced_weights(labels: Sequence[int], num_classes: int) -> tuple[float, ...]:
    """Return weights of the classes, inverse to their numbers of videos. The mean over the videos is 1.

    Classes without videos get 0.
    """
    counts = torch.bincount(torch.tensor(labels), minlength=num_classes)
    present = int((counts > 0).sum())
    return tuple(len(labels) / (present * count) if count else 0.0 for count in counts.tolist())


@dataclass(frozen=True)
class ImageTextContrast:
    """CLIP's symmetric cross entropy between clips and captions of a batch. Equal captions count as one.

    The batch has `frames [B, T, 3, S, S]` and `tokens [B, L]`.
    """

    def __call__(self, model: nn.Module, batch: Batch, epoch: int) -> tuple[Tensor, Losses]:
        """Return the loss of a batch and its detached parts."""
        output = model(batch["frames"], text=batch["tokens"], normalized=True, patches=False)
        same = (batch["tokens"][:, None] == batch["tokens"][None]).all(dim=-1).float()
        targets = same / same.sum(dim=1, keepdim=True)
        logits = _at_least_float32(output.logits)
        targets = targets.to(logits.dtype)
        error = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
        return total_loss({"contrast": error} | output.losses)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def total_loss(losses: Losses) -> tuple[Tensor, Losses]:
    """Return the sum of losses, and all detached parts for the log. Losses `<adapter>.<block>` are summed."""
    parts: Losses = {}
    for key, loss in losses.items():
        name = key.split(".")[0]
        parts[name] = parts[name] + loss if name in parts else loss
    total = torch.stack(list(parts.values())).sum()
    return total, {key: value.detach() for key, value in parts.items()} | {"loss": total.detach()}
