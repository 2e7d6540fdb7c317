"""What can be learnt from video without labels: terms of a loss, each with heads that are thrown away.

A term shows the student a clip changed in its own way and says what the student's features should tell of it. What is
drawn for a clip (masks, orders) comes from a generator of its own, so that terms do not change each other's draws.

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
    """What an encoder makes of clips: frames [B, T, E]; patches [B, T, N, D] of the last block; video
    [B, E], which for the teacher is the mean over frames."""

    frames: Tensor
    patches: Tensor
    video: Tensor


class Seen(NamedTuple):
    """Features of one batch: of the student for clips with all that there is to see (`whole`: as they are, or in
    another order) and for clips as the term changed them, and of the teacher for the clips as they are."""

    whole: Features
    changed: Features
    teacher: Features


class Sizes(NamedTuple):
    """What the heads of a term are made for: T, D, E and (H, W)."""

    num_frames: int
    width: int
    embed_dim: int
    grid: tuple[int, int]


@dataclass(frozen=True)
class PretextTaskConfig:
    """weight: of the term in the loss."""

    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise InputError(f"weight={self.weight}: expected a positive number; leave out a term that has none")


class PretextTask(nn.Module):
    """A term of the loss, with its heads.

    whole: its clips show all that there is to see, if in another order.
    """

    Config: ClassVar[type[PretextTaskConfig]] = PretextTaskConfig
    whole: ClassVar[bool] = False

    def __init__(self, config: Any, sizes: Sizes):
        super().__init__()
        self.config, self.sizes = config, sizes

    def change(self, frames: Tensor, generators: list[Generator]) -> tuple[Tensor, Tensor] | None:
        """Normalised clips [B, T, 3, S, S] -> the clips that the student is shown, and what was drawn; None where the
        term needs no clips of its own."""
        return None

    def forward(self, seen: Seen, drawn: Tensor | None) -> tuple[Losses, Losses]:
        """Scalar losses by name, and figures for the log."""
        raise NotImplementedError


@dataclass(frozen=True)
class MaskedAlignmentConfig(PretextTaskConfig):
    """ratio: share of the patches that are masked."""

    ratio: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ratio < 1:
            raise InputError(f"ratio={self.ratio}: expected a share between 0 and 1, such as 0.5")


class MaskedAlignment(PretextTask):
    """The student sees clips with tubes masked, and predicts what the teacher makes of the whole ones.

    After Unmasked Teacher (ICCV 2023, https://arxiv.org/abs/2303.16058). Its student drops masked patches, and an
    adapter needs the whole grid: here they become grey. `patches`: the teacher's tokens at the masked places.
    `frames`: from the student's one feature of the clip, how the teacher's features of each frame differ from their
    mean, which says what changes, and in which order.
    """

    Config = MaskedAlignmentConfig

    def __init__(self, config: MaskedAlignmentConfig, sizes: Sizes):
        super().__init__(config, sizes)
        self.patches = nn.Sequential(nn.LayerNorm(sizes.width), nn.Linear(sizes.width, sizes.width))
        self.frames = nn.Sequential(
            nn.LayerNorm(sizes.embed_dim), nn.Linear(sizes.embed_dim, sizes.num_frames * sizes.embed_dim)
        )

    def change(self, frames: Tensor, generators: list[Generator]) -> tuple[Tensor, Tensor]:
        masks = torch.stack([tube_mask(self.sizes.grid, self.config.ratio, one) for one in generators])
        masks = masks.to(frames.device)
        pixels = F.interpolate(masks[:, None].to(frames.dtype), frames.shape[-2:])  # normalised, grey is 0
        return frames * (1 - pixels[:, None]), masks

    def forward(self, seen: Seen, drawn: Tensor | None) -> tuple[Losses, Losses]:
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
    """segments: G, parts of a clip that are shuffled."""

    segments: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.segments < 2:
            raise InputError(f"segments={self.segments}: expected at least 2")


class Order(PretextTask):
    """Arrow of time and order of shuffled segments, after https://arxiv.org/abs/1603.08561 and
    https://arxiv.org/abs/1708.01246.

    The student sees the clip as it is, reversed, or with its segments shuffled. Of each segment, as the teacher knows
    it, the head is asked when the student has seen it. Whether a clip runs backwards cannot be said of much motion
    (left is as likely as right); when something was seen can, by features of the clip that tell its motion.
    """

    Config = OrderConfig
    whole = True

    def __init__(self, config: OrderConfig, sizes: Sizes):
        super().__init__(config, sizes)
        if sizes.num_frames < config.segments:
            raise InputError(f"order: {config.segments} segments need as many frames, got {sizes.num_frames}")
        width = sizes.embed_dim
        self.what = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, ORDER_WIDTH))
        self.when = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, config.segments * ORDER_WIDTH))

    def change(self, frames: Tensor, generators: list[Generator]) -> tuple[Tensor, Tensor]:
        orders = torch.stack([draw_order(frames.shape[1], self.config.segments, one) for one in generators])
        orders = orders.to(frames.device)
        return torch.stack([clip[order] for clip, order in zip(frames, orders, strict=True)]), orders

    def forward(self, seen: Seen, drawn: Tensor | None) -> tuple[Losses, Losses]:
        assert drawn is not None
        segments = segment_means(seen.teacher.frames, self.config.segments)
        what = self.what(segments - segments.mean(dim=1, keepdim=True))
        when = self.when(seen.changed.video).unflatten(-1, (self.config.segments, ORDER_WIDTH))
        scores = torch.einsum("bgw,bsw->bgs", what, when) / ORDER_WIDTH**0.5  # of segment g in slot s
        slots = seen_when(drawn, self.config.segments)
        forward, backward = (one.diagonal(dim1=1, dim2=2).sum(dim=1) for one in (scores, scores.flip(2)))
        runs = torch.stack([(drawn == order).all(dim=1) for order in _both_ways(drawn)])
        figures = {
            "order_accuracy": (scores.argmax(dim=-1) == slots).float().mean(),
            "arrow_accuracy": ((forward > backward) == runs[0])[runs.any(dim=0)].float().mean(),
        }
        return {"order": F.cross_entropy(scores.flatten(0, 1), slots.flatten())}, figures


class Distillation(PretextTask):
    """Keeps the student's features of a clip near the mean of CLIP's own features of its frames, and with them what
    CLIP knows zero-shot: 1 - cosine."""

    def forward(self, seen: Seen, drawn: Tensor | None) -> tuple[Losses, Losses]:
        return {"distillation": 1 - F.cosine_similarity(seen.whole.video, seen.teacher.video, dim=-1).mean()}, {}


PRETEXT_TASKS = Registry("objective", {"masked": MaskedAlignment, "order": Order, "distillation": Distillation})


def resolve_pretext_tasks(spec: list[Choice]) -> dict[str, PretextTaskConfig]:
    """Configs of terms by name.

    Raises:
        ValueError: no term to learn from, an unknown one or option, or the same twice.
    """
    configs = PRETEXT_TASKS.resolve_many(spec)
    if not configs.keys() - {"distillation"}:
        raise InputError(f"objectives={spec}: expected at least one beside distillation, which alone teaches nothing")
    return configs


def tube_mask(grid: tuple[int, int], ratio: float, generator: Generator) -> Tensor:
    """Patches that are masked in every frame of a clip: bool [H, W], `ratio` of them (at least one, not all)."""
    patches = grid[0] * grid[1]
    hidden = min(max(round(ratio * patches), 1), patches - 1)
    return (torch.rand(patches, generator=generator).argsort() < hidden).view(grid)


def draw_order(num_frames: int, segments: int, generator: Generator) -> Tensor:
    """Frame indices int64 [T] as they are (half of the time), reversed, or with the segments of the clip shuffled (a
    quarter each)."""
    frames = torch.arange(num_frames)
    kind = int(torch.randint(4, (), generator=generator))
    if kind < 2:
        return frames
    if kind == 2:
        return frames.flip(0)
    parts = frames.tensor_split(segments)
    return torch.cat([parts[place] for place in torch.randperm(segments, generator=generator)])


def segment_means(values: Tensor, segments: int) -> Tensor:
    """Means over the frames of each of G segments: [B, T, ...] -> [B, G, ...]."""
    return torch.stack([part.mean(dim=1) for part in values.tensor_split(segments, dim=1)], dim=1)


def seen_when(orders: Tensor, segments: int) -> Tensor:
    """The slot in which each segment of a clip is shown, int64 [B, G], by the frames [B, T] in the order shown."""
    times = orders.argsort(dim=1).float()
    return segment_means(times, segments).argsort(dim=1).argsort(dim=1)


def _both_ways(orders: Tensor) -> tuple[Tensor, Tensor]:
    forward = torch.arange(orders.shape[1], device=orders.device)
    return forward, forward.flip(0)
