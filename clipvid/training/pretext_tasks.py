"""Registry of the pretext tasks, and those about features: masked alignment and distillation.

Shapes: B clips, T frames, N = H x W patches, D tower width, E embedding, S image side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from clipvid import InputError
from clipvid.registry import Choice, Registry
from clipvid.training.pretext import Losses, PretextTask, PretextTaskConfig, Seen, Sizes
from clipvid.training.time_tasks import Direction, Neighbors, Order, Speed
from clipvid.training.tracking_task import Tracking


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


class Distillation(PretextTask):
    """Distillation of zero-shot CLIP.

    The loss is 1 - cosine between the student's clip feature and the mean of CLIP's frame features.
    """

    only_reorders = True

    def forward(self, seen: Seen, drawn: Tensor | None) -> tuple[Losses, Losses]:
        """Return the loss."""
        return {"distillation": 1 - F.cosine_similarity(seen.whole.video, seen.teacher.video, dim=-1).mean()}, {}


PRETEXT_TASKS = Registry(
    "objective",
    {
        "masked": MaskedAlignment,
        "order": Order,
        "neighbors": Neighbors,
        "speed": Speed,
        "direction": Direction,
        "tracking": Tracking,
        "distillation": Distillation,
    },
)


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
