"""Pretext tasks about time: the order of segments and of neighboring frames, speed, and direction.

Their clips have only frames of the original, so that stored features can replace frames.

Shapes: B clips, T frames, E embedding, S image side, G segments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from clipvid import InputError
from clipvid.training.pretext import Losses, PretextTask, PretextTaskConfig, Seen, Sizes

ORDER_WIDTH = 64


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
        return _in_order(frames, orders), orders.to(frames.device)

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


class Neighbors(PretextTask):
    """Order of neighboring frames.

    The frames of each pair, 1 and 2, 3 and 4 and so on, are swapped with probability 1/2. The head reads the features
    of both frames, and predicts whether they were swapped. One frame does not tell, so that the features must contain
    something of the other frames.
    """

    whole = True
    only_reorders = True

    def __init__(self, config: PretextTaskConfig, sizes: Sizes):
        super().__init__(config, sizes)
        if sizes.num_frames < 4:
            raise InputError(f"neighbors: expected at least 4 frames, two pairs, got {sizes.num_frames}")
        self.frame = nn.Sequential(nn.LayerNorm(sizes.embed_dim), nn.Linear(sizes.embed_dim, 2 * ORDER_WIDTH))
        self.swapped = nn.Sequential(nn.GELU(), nn.Linear(ORDER_WIDTH, 1))

    def change(self, frames: Tensor, generators: list[Generator]) -> tuple[Tensor, Tensor]:
        """Return the clips with swapped pairs, and which are swapped, bool [B, T // 2]."""
        orders, swapped = _draw(draw_swaps, frames.shape[1], generators)
        return _in_order(frames, orders), swapped.to(frames.device)

    def forward(self, seen: Seen, drawn: Tensor | None) -> tuple[Losses, Losses]:
        """Return the loss of the pairs, and the share of pairs that are recognized."""
        assert drawn is not None
        first, second = self.frame(seen.changed.frames).chunk(2, dim=-1)
        pairs = 2 * drawn.shape[1]
        scores = self.swapped(first[:, 0:pairs:2] + second[:, 1:pairs:2]).squeeze(-1)
        figures = {"neighbors_accuracy": ((scores > 0) == drawn).float().mean()}
        return {"neighbors": F.binary_cross_entropy_with_logits(scores, drawn.to(scores.dtype))}, figures


class Speed(PretextTask):
    """Speed of a clip (SpeedNet, CVPR 2020, https://arxiv.org/abs/2004.06130).

    The student sees half as many frames: every second one, or consecutive ones. The head predicts which.
    """

    only_reorders = True

    def __init__(self, config: PretextTaskConfig, sizes: Sizes):
        super().__init__(config, sizes)
        if sizes.num_frames < 4:
            raise InputError(f"speed: expected at least 4 frames, of which the student sees 2, got {sizes.num_frames}")
        self.fast = nn.Sequential(nn.LayerNorm(sizes.embed_dim), nn.Linear(sizes.embed_dim, 1))

    def change(self, frames: Tensor, generators: list[Generator]) -> tuple[Tensor, Tensor]:
        """Return clips of T // 2 frames, and which are twice as fast, bool [B]."""
        orders, fast = _draw(draw_speed, frames.shape[1], generators)
        return _in_order(frames, orders), fast.to(frames.device)

    def forward(self, seen: Seen, drawn: Tensor | None) -> tuple[Losses, Losses]:
        """Return the loss of the speed, and the share of clips whose speed is recognized."""
        assert drawn is not None
        scores = self.fast(seen.changed.video).squeeze(-1)
        figures = {"speed_accuracy": ((scores > 0) == drawn).float().mean()}
        return {"speed": F.binary_cross_entropy_with_logits(scores, drawn.to(scores.dtype))}, figures


@dataclass(frozen=True)
class DirectionConfig(PretextTaskConfig):
    """Options of direction.

    Attributes:
        temperature: Divisor of the cosines of features.
    """

    temperature: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise InputError(f"temperature={self.temperature}: expected a positive number, such as 0.1")


class Direction(PretextTask):
    """Contrast between clips that are shifted in time and reversed ones.

    The feature of the first three quarters of a clip shall be near that of the last three quarters. It shall be far
    from that of the first three quarters reversed, and from those of other clips of the batch. Only a feature that
    contains the order of frames is near one and far from the other.
    """

    Config = DirectionConfig
    only_reorders = True

    def __init__(self, config: DirectionConfig, sizes: Sizes):
        super().__init__(config, sizes)
        if sizes.num_frames < 4:
            raise InputError(f"direction: expected at least 4 frames, of which it uses 3, got {sizes.num_frames}")
        self.project = nn.Sequential(nn.LayerNorm(sizes.embed_dim), nn.Linear(sizes.embed_dim, 2 * ORDER_WIDTH))

    def change(self, frames: Tensor, generators: list[Generator]) -> tuple[Tensor, Tensor]:
        """Return the first three quarters of all clips, the last ones, and the first ones reversed, without a draw."""
        count = frames.shape[1] - frames.shape[1] // 4
        first, last = frames[:, :count], frames[:, -count:]
        return torch.cat([first, last, first.flip(1)]), frames.new_zeros(())

    def forward(self, seen: Seen, drawn: Tensor | None) -> tuple[Losses, Losses]:
        """Return the loss of the contrast, and the share of clips that are nearer to the shifted clip."""
        first, last, backwards = F.normalize(self.project(seen.changed.video), dim=-1).chunk(3)
        near, reverse = first @ last.T, (first * backwards).sum(dim=-1, keepdim=True)
        scores = torch.cat([near, reverse], dim=1) / self.config.temperature
        figures = {"direction_accuracy": (near.diagonal() > reverse[:, 0]).float().mean()}
        return {"direction": F.cross_entropy(scores, torch.arange(len(first), device=first.device))}, figures


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


def draw_swaps(num_frames: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Draw which neighbors are swapped: frame indices int64 [T], and bool [T // 2]. A last single frame stays."""
    swapped = torch.rand(num_frames // 2, generator=generator) < 0.5
    pairs = torch.arange(num_frames // 2 * 2).view(-1, 2)
    order = torch.where(swapped[:, None], pairs.flip(1), pairs).flatten()
    return torch.cat([order, torch.arange(len(order), num_frames)]), swapped


def draw_speed(num_frames: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Draw half of the frames, consecutive or every second one: indices int64 [T // 2], and True if every second."""
    half, fast = num_frames // 2, torch.rand((), generator=generator) < 0.5
    step = 2 if fast else 1
    start = torch.randint(num_frames - step * (half - 1), (), generator=generator)
    return start + step * torch.arange(half), fast


def segment_means(values: Tensor, segments: int) -> Tensor:
    """Return means over the frames of each of G segments: [B, T, ...] -> [B, G, ...]."""
    return torch.stack([part.mean(dim=1) for part in values.tensor_split(segments, dim=1)], dim=1)


def seen_when(orders: Tensor, segments: int) -> Tensor:
    """Return the slot in which each segment is shown, int64 [B, G], for frames [B, T] in the order shown."""
    times = orders.argsort(dim=1).float()
    return segment_means(times, segments).argsort(dim=1).argsort(dim=1)


def _draw(
    draw: Callable[[int, Generator], tuple[Tensor, Tensor]], num_frames: int, generators: list[Generator]
) -> tuple[Tensor, Tensor]:
    """Return the drawn indices and answers of all clips, stacked."""
    orders, answers = zip(*(draw(num_frames, one) for one in generators), strict=True)
    return torch.stack(orders), torch.stack(answers)


def _in_order(frames: Tensor, orders: Tensor) -> Tensor:
    """Return the frames of clips [B, T, ...] at the indices `orders`, int64 [B, T']."""
    return torch.stack([clip[order] for clip, order in zip(frames, orders.to(frames.device), strict=True)])


def _both_ways(orders: Tensor) -> tuple[Tensor, Tensor]:
    forward = torch.arange(orders.shape[1], device=orders.device)
    return forward, forward.flip(0)
