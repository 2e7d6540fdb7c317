"""Pretext tasks for video without labels: losses with heads that are discarded after training.

A term shows the student a changed clip and defines a target for the student's features. Random draws of a clip (masks,
orders) come from a separate generator per task, so that tasks do not affect each other.

Shapes: B clips, T frames, N = H x W patches, D tower width, E embedding, S image side, G segments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from clipvid import InputError
from clipvid.registry import Choice, Registry

ORDER_WIDTH = 64

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
        only_reorders: True if its clips have the frames of the original, possibly in another order. `change` then gets
            stored features [B, T, P+N, D] in place of frames, if the training keeps them.
    """

    Config: ClassVar[type[PretextTaskConfig]] = PretextTaskConfig
    whole: ClassVar[bool] = False
    only_reorders: ClassVar[bool] = False

    def __init__(self, config: Any, sizes: Sizes):
        super().__init__()
        self.config, self.sizes = config, sizes

    def change(self, frames: Tensor, generators: list[Generator]) -> tuple[Tensor, Tensor] | None:
        """Return the student's clips for normalized clips [B, T, 3, S, S], and the draws; None for unchanged clips."""
        return None

    def forward(self, seen: Seen, drawn: Tensor | None) -> tuple[Losses, Losses]:
        """Return scalar losses by name, and figures for the log."""
        raise NotImplementedError


@dataclass(frozen=True)
class MaskedAlignmentConfig(PretextTaskConfig):
    """Options of masked alignment.

    Attributes:
        ratio: Share of masked patches, between 0 and 1.
    """

    ratio: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ratio < 1:
            raise InputError(f"ratio={self.ratio}: expected a share between 0 and 1, such as 0.5")


class MaskedAlignment(PretextTask):
    """Prediction of the teacher's features of whole clips from clips with masked tubes.

    Based on Unmasked Teacher (ICCV 2023, https://arxiv.org/abs/2303.16058). Its student drops masked patches. Adapters
    need the whole grid, so here they become gray. `patches` predicts the teacher's tokens at masked places. `frames`
    predicts the deviation of the teacher's frame features from their mean, from the student's clip feature. The
    deviations describe what changes, and in which order.
    """

    Config = MaskedAlignmentConfig

    def __init__(self, config: MaskedAlignmentConfig, sizes: Sizes):
        super().__init__(config, sizes)
        self.patches = nn.Sequential(nn.LayerNorm(sizes.width), nn.Linear(sizes.width, sizes.width))
        self.frames = nn.Sequential(
            nn.LayerNorm(sizes.embed_dim), nn.Linear(sizes.embed_dim, sizes.num_frames * sizes.embed_dim)
        )

    def change(self, frames: Tensor, generators: list[Generator]) -> tuple[Tensor, Tensor]:
        """Return clips with gray tubes, and the masks bool [B, H, W]."""
        masks = torch.stack([tube_mask(self.sizes.grid, self.config.ratio, one) for one in generators])
        masks = masks.to(frames.device)
        pixels = F.interpolate(masks[:, None].to(frames.dtype), frames.shape[-2:])  # gray is 0 after normalization
        return frames * (1 - pixels[:, None]), masks

    def forward(self, seen: Seen, drawn: Tensor | None) -> tuple[Losses, Losses]:
        """Return the losses of masked patches and frames."""
        assert drawn is not None
        hidden = drawn.flatten(1)[:, None].expand(seen.changed.patches.shape[:3])
        target = F.layer_norm(seen.teacher.patches[hidden], (self.sizes.width,))
        patches = 1 - F.cosine_similarity(self.patches(seen.changed.patches[hidden]), target, dim=-1).mean()
        change = seen.teacher.frames - seen.teacher.frames.mean(dim=1, keepdim=True)
        guess = self.frames(seen.changed.video)
        frames = 1 - F.cosine_similarity(guess, change.flatten(1), dim=-1).mean()
        return {"masked_patches": patches, "masked_frames": frames}, {}


@dataclass(frozen=True)
class OrderConfig(PretextTaskConfig):
    """Options of order prediction.

    Attributes:
        segments: Number of segments G of a clip that are shuffled, at least 2.
    """

    segments: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.segments < 2:
            raise InputError(f"segments={self.segments}: expected at least 2")


class Order(PretextTask):
    """Arrow of time and order of shuffled segments (https://arxiv.org/abs/1603.08561, https://arxiv.org/abs/1708.01246).

    The student sees the clip in original order, reversed, or with its segments shuffled. For each segment, given by the
    teacher's features, the head predicts when the student has seen it. A reversed clip is often as plausible as the
    original, since left is as likely as right. The time of a segment is always defined, and predicting it requires
    features of motion.
    """

    Config = OrderConfig
    whole = True
    only_reorders = True

    def __init__(self, config: OrderConfig, sizes: Sizes):
        super().__init__(config, sizes)
        if sizes.num_frames < config.segments:
            raise InputError(f"order: {config.segments} segments need as many frames, got {sizes.num_frames}")
        width = sizes.embed_dim
        self.what = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, ORDER_WIDTH))
        self.when = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, config.segments * ORDER_WIDTH))

    def change(self, frames: Tensor, generators: list[Generator]) -> tuple[Tensor, Tensor]:
        """Return the clips in drawn orders, and the orders int64 [B, T]."""
        orders = torch.stack([draw_order(frames.shape[1], self.config.segments, one) for one in generators])
        orders = orders.to(frames.device)
        return torch.stack([clip[order] for clip, order in zip(frames, orders, strict=True)]), orders

    def forward(self, seen: Seen, drawn: Tensor | None) -> tuple[Losses, Losses]:
        """Return the loss of the order, and the accuracies of order and arrow."""
        assert drawn is not None
        segments = segment_means(seen.teacher.frames, self.config.segments)
        what = self.what(segments - segments.mean(dim=1, keepdim=True))
        when = self.when(seen.changed.video).unflatten(-1, (self.config.segments, ORDER_WIDTH))
        scores = torch.einsum("bgw,bsw->bgs", what, when) / ORDER_WIDTH**0.5  # [b, g, s]: segment g in slot s
        slots = seen_when(drawn, self.config.segments)
        forward, backward = (one.diagonal(dim1=1, dim2=2).sum(dim=1) for one in (scores, scores.flip(2)))
        runs = torch.stack([(drawn == order).all(dim=1) for order in _both_ways(drawn)])
        figures = {
            "order_accuracy": (scores.argmax(dim=-1) == slots).float().mean(),
            "arrow_accuracy": ((forward > backward) == runs[0])[runs.any(dim=0)].float().mean(),
        }
        return {"order": F.cross_entropy(scores.flatten(0, 1), slots.flatten())}, figures


class Distillation(PretextTask):
    """Distillation of zero-shot CLIP.

    The loss is 1 - cosine between the student's clip feature and the mean of CLIP's frame features.
    """

    only_reorders = True

    def forward(self, seen: Seen, drawn: Tensor | None) -> tuple[Losses, Losses]:
        """Return the loss."""
        return {"distillation": 1 - F.cosine_similarity(seen.whole.video, seen.teacher.video, dim=-1).mean()}, {}


PRETEXT_TASKS = Registry("objective", {"masked": MaskedAlignment, "order": Order, "distillation": Distillation})


def resolve_pretext_tasks(spec: list[Choice]) -> dict[str, PretextTaskConfig]:
    """Return configs of tasks by name.

    Raises:
        InputError: Distillation is the only task, a task or option is unknown, or a task is listed twice.
    """
    configs = PRETEXT_TASKS.resolve_many(spec)
    if not configs.keys() - {"distillation"}:
        raise InputError(f"objectives={spec}: expected at least one besides distillation, which alone trains nothing")
    return configs


def tube_mask(grid: tuple[int, int], ratio: float, generator: Generator) -> Tensor:
    """Draw patches that are masked in every frame of a clip: bool [H, W], a share of `ratio`, at least one."""
    patches = grid[0] * grid[1]
    hidden = min(max(round(ratio * patches), 1), patches - 1)
    return (torch.rand(patches, generator=generator).argsort() < hidden).view(grid)


def draw_order(num_frames: int, segments: int, generator: Generator) -> Tensor:
    """Draw frame indices int64 [T]: in order (probability 1/2), reversed (1/4) or with shuffled segments (1/4)."""
    frames = torch.arange(num_frames)
    kind = int(torch.randint(4, (), generator=generator))
    if kind < 2:
        return frames
    if kind == 2:
        return frames.flip(0)
    parts = frames.tensor_split(segments)
    return torch.cat([parts[place] for place in torch.randperm(segments, generator=generator)])


def segment_means(values: Tensor, segments: int) -> Tensor:
    """Return means over the frames of each of G segments: [B, T, ...] -> [B, G, ...]."""
    return torch.stack([part.mean(dim=1) for part in values.tensor_split(segments, dim=1)], dim=1)


def seen_when(orders: Tensor, segments: int) -> Tensor:
    """Return the slot in which each segment is shown, int64 [B, G], for frames [B, T] in the order shown."""
    times = orders.argsort(dim=1).float()
    return segment_means(times, segments).argsort(dim=1).argsort(dim=1)


def _both_ways(orders: Tensor) -> tuple[Tensor, Tensor]:
    forward = torch.arange(orders.shape[1], device=orders.device)
    return forward, forward.flip(0)
