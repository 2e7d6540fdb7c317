"""Base of the pretext tasks for video without labels: losses with heads that are discarded after training.

A term shows the student a changed clip and defines a target for the student's features. Random draws of a clip (masks,
orders) come from a separate generator per task, so that tasks do not affect each other.

Shapes: B clips, T frames, N = H x W patches, D tower width, E embedding, S image side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Generator, Tensor, nn

from clipvid import InputError

Losses = dict[str, Tensor]


class Features(NamedTuple):
    """Features of clips.

    Attributes:
        frames: [B, T, E].
        patches: [B, T, N, D] of the last block.
        video: [B, E]. For the teacher, the mean over frames.
    """

    frames: Tensor
    patches: Tensor
    video: Tensor


class Seen(NamedTuple):
    """Features of one batch.

    Attributes:
        whole: Student features of complete clips, in original or changed order.
        changed: Student features of clips as changed by the term.
        teacher: Teacher features of the original clips.
    """

    whole: Features
    changed: Features
    teacher: Features


class Sizes(NamedTuple):
    """Sizes of a term's heads: T, D, E and (H, W)."""

    num_frames: int
    width: int
    embed_dim: int
    grid: tuple[int, int]


@dataclass(frozen=True)
class PretextTaskConfig:
    """Options of a term.

    Attributes:
        weight: Weight in the loss.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise InputError(f"weight={self.weight}: expected a positive number; remove the objective to disable it")


class PretextTask(nn.Module):
    """Loss term with its heads.

    Attributes:
        whole: True if its clips are complete, possibly in another order.
        only_reorders: True if its clips have only frames of the original, in any order. `change` then gets stored
            features [B, T, P+N, D] in place of frames, if the training keeps them.
    """

    Config: ClassVar[type[PretextTaskConfig]] = PretextTaskConfig
    whole: ClassVar[bool] = False
    only_reorders: ClassVar[bool] = False

    def __init__(self, config: Any, sizes: Sizes):
        super().__init__()
        self.config, self.sizes = config, sizes

    def change(self, frames: Tensor, generators: list[Generator]) -> tuple[Tensor, Tensor] | None:
        """Return the student's clips for normalized clips [B, T, 3, S, S], and the draws; None for unchanged clips.

        The student's clips can have fewer frames, and there can be several per clip.
        """
        return None

    def forward(self, seen: Seen, drawn: Tensor | None) -> tuple[Losses, Losses]:
        """Return scalar losses by name, and figures for the log."""
        raise NotImplementedError
