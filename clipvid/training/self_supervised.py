"""Learning motion from video without labels: a frozen CLIP teaches, the adapters of a student learn.

Shapes: B clips, T frames, E embedding, S image side.
"""

from __future__ import annotations

import zlib
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from clipvid import InputError
from clipvid.data.sampling import keyed_generator
from clipvid.layers.norm import frozen_bn_statistics
from clipvid.model.encoder import VideoEncoder
from clipvid.model.trainable import TrainableModel
from clipvid.model.video_clip import VideoCLIP
from clipvid.training.objectives import Batch, Losses, total_loss
from clipvid.training.pretext_tasks import PRETEXT_TASKS, Features, PretextTaskConfig, Seen, Sizes


class SelfSupervisedModel(TrainableModel):
    """A video model, its teacher (the CLIP it stands on, without adapters) and the terms that it learns from.

    model: only adapters and pooling may be trained. terms: configs by name, see `clipvid.training.pretext_tasks`.
    """

    def __init__(self, model: VideoCLIP, terms: dict[str, PretextTaskConfig]):
        super().__init__()
        others = {name for name, value in model.named_parameters() if value.requires_grad} - set(model.temporal_state())
        if others:
            raise InputError(
                f"without labels only adapters and pooling learn, and the model trains {sorted(others)[:3]} too: leave "
                "model.tune and model.head at their defaults"
            )
        vision = model.backbone.vision
        self.model = model
        self.teacher = VideoEncoder(model.backbone)
        sizes = Sizes(model.num_frames, vision.width, vision.embed_dim, vision.grid)
        # Checkpoints contain this name.
        self.terms: Any = nn.ModuleDict({name: PRETEXT_TASKS[name](config, sizes) for name, config in terms.items()})

    @property
    def video_model(self) -> VideoCLIP:
        """The model that learns."""
        return self.model

    def trained_state(self) -> dict[str, Tensor]:
        """Return what the model trains, and the heads of the terms, by name in `state_dict`.

        A checkpoint holds the heads, a model folder does not.
        """
        own = {f"model.{name}": tensor for name, tensor in self.model.trained_state().items()}
        return own | {f"terms.{name}": tensor for name, tensor in self.terms.state_dict(keep_vars=True).items()}

    def forward(self, frames: Tensor, generators: dict[str, list[Generator]]) -> tuple[Losses, Losses]:
        """The weighted losses of a batch, those of the adapters among them, and figures for the log.

        Args:
            frames: normalized [B, T, 3, S, S].
            generators: for each term, one for each clip.
        """
        # Without a term whose clips show everything, the clips are shown as they are too, under no name.
        changes = {name: task.change(frames, generators[name]) for name, task in self.terms.items()}
        drawn = {name: change[1] for name, change in changes.items() if change is not None}
        clips = {name: change[0] for name, change in changes.items() if change is not None}
        whole = next((name for name in clips if self.terms[name].whole), None)
        if whole is None:
            clips[whole] = frames
        features, auxiliary = self._encode(clips, whole)
        with torch.no_grad():
            taught = self.teacher(frames)
        teacher = Features(taught.frame_features, taught.patch_tokens, taught.frame_features.mean(dim=1))
        losses: Losses = {}
        figures = collapse_metrics(features[whole].video)
        figures |= {f"clip_{name}": value for name, value in collapse_metrics(teacher.video).items()}
        for name, task in self.terms.items():
            seen = Seen(features[whole], features.get(name, features[whole]), teacher)
            own, logged = task(seen, drawn.get(name))
            losses |= {key: task.config.weight * value for key, value in own.items()}
            figures |= logged
        return losses | auxiliary, figures

    def _encode(self, clips: dict[str | None, Tensor], whole: str | None) -> tuple[dict[str | None, Features], Losses]:
        """What the student makes of several batches of clips, and the losses of its adapters, meant over these. Clips
        with parts hidden leave the stored statistics of BatchNorm alone, which are for whole ones."""
        features: dict[str | None, Features] = {}
        losses: Losses = {}
        for name, batch in clips.items():
            with nullcontext() if name == whole else frozen_bn_statistics(self.model.encoder):
                encoded = self.model.encoder(batch)
            video = self.model.pooling(encoded.frame_features)
            features[name] = Features(encoded.frame_features, encoded.patch_tokens, video)
            for key, loss in encoded.losses.items():
                losses[key] = losses.get(key, 0.0) + loss / len(clips)
        return features, losses


@dataclass(frozen=True)
class SelfSupervisedObjective:
    """The losses of a `SelfSupervisedModel`'s terms. seed: of what the terms draw. terms: their names."""

    seed: int
    terms: tuple[str, ...]

    def __call__(self, model: nn.Module, batch: Batch, epoch: int) -> tuple[Tensor, Losses]:
        keys = list(zip(batch["epoch"].tolist(), batch["index"].tolist(), strict=True))
        generators = {
            name: [keyed_generator(self.seed, *key, zlib.crc32(name.encode())) for key in keys] for name in self.terms
        }
        losses, figures = model(batch["frames"], generators)
        loss, parts = total_loss(losses)
        return loss, parts | {name: value.detach() for name, value in figures.items()}


@torch.no_grad()
def collapse_metrics(features: Tensor) -> Losses:
    """How far features [B, E] are from having collapsed into one: `feature_std`, of their directions, 1 where these are
    spread evenly; `effective_rank`, at most B."""
    directions = F.normalize(features.float(), dim=-1)
    std = directions.std(dim=0, unbiased=False).mean() * features.shape[1] ** 0.5
    rank = effective_rank(directions.nan_to_num()) + 0 * std  # svd wants numbers, and NaN is to come out as NaN
    return {"feature_std": std, "effective_rank": rank}


def effective_rank(features: Tensor) -> Tensor:
    """How many directions features [V, E] spread over, a scalar from 1 to min(V, E): the exponential of the entropy of
    their singular values (RankMe, https://arxiv.org/abs/2210.02885)."""
    values = torch.linalg.svdvals(features)
    return torch.special.entr(values / values.sum()).sum().exp()
