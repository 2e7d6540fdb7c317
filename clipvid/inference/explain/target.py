"""Target of an explanation: the score of a class, or of a class against another one.

Shapes: B clips, T frames, K classes, S image side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clipvid import InputError
from clipvid.layers.norm import PausableBatchNorm2d
from clipvid.model.video_clip import VideoCLIP
from clipvid.registry import suggest

CLIPS_AT_ONCE = 8


@dataclass(frozen=True)
class Target:
    """Class to explain.

    Attributes:
        label: Index of the class.
        against: Index of the class that it is compared with, or None for the mean of all others.
        is_alone: Explain the logit of the class itself, since other classes do not exclude it.
    """

    label: int
    against: int | None = None
    is_alone: bool = False

    def score(self, logits: Tensor) -> Tensor:
        """Return the scores [B] of logits [B, K]: the class's logit minus that of `against`.

        With a single class, or with `is_alone`, the score is its logit.
        """
        own = logits[:, self.label]
        if self.is_alone:
            return own
        if self.against is not None:
            return own - logits[:, self.against]
        others = logits.shape[1] - 1
        return own - (logits.sum(dim=1) - own) / others if others else own


def find_label(name: str | int, labels: Sequence[str], option: str) -> int:
    """Return the index of a class by name or index.

    Raises:
        InputError: The model has no such class.
    """
    if not isinstance(name, str):
        if not 0 <= name < len(labels):
            raise InputError(f"{option}={name}: expected an index from 0 to {len(labels) - 1}, or the name of a class")
        return name
    if name not in labels:
        shown = ", ".join(labels[:10]) + (" ..." if len(labels) > 10 else "")
        raise InputError(f"{option}={name!r} is not a class of the model{suggest(name, labels)}; classes: {shown}")
    return list(labels).index(name)


def clips_at_once(model: VideoCLIP) -> int:
    """Return the number of clips of a forward pass, 1 if norms of the model read the other clips of a batch."""
    alone = any(isinstance(module, PausableBatchNorm2d) and module.eval_batch_stats for module in model.modules())
    return 1 if alone else CLIPS_AT_ONCE


@torch.no_grad()
def logits_of(model: VideoCLIP, clips: Tensor) -> Tensor:
    """Return logits [B, K] of normalized clips [B, T, 3, S, S], a few clips at a time, in float32."""
    parts = clips.split(clips_at_once(model))
    return torch.cat([model(part, normalized=True).logits.float() for part in parts])
