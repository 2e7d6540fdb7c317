"""Self-supervised training on video: a frozen CLIP is the teacher, the student trains its adapters.

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
from clipvid.model.encoder import FrozenFeatures, VideoEncoder
from clipvid.model.trainable import TrainableModel
from clipvid.model.video_clip import VideoCLIP
from clipvid.training.objectives import Batch, Losses, total_loss
from clipvid.training.pretext import Features, PretextTaskConfig, Seen, Sizes
from clipvid.training.pretext_tasks import PRETEXT_TASKS


class SelfSupervisedModel(TrainableModel):
    """Video model, its teacher (the same CLIP without adapters) and the pretext tasks.

    Args:
        model: Model in which only adapters and pooling are trained.
        tasks: Configs by name, see `clipvid.training.pretext_tasks`.
    """

    def __init__(self, model: VideoCLIP, tasks: dict[str, PretextTaskConfig]):
        super().__init__()
        others = {name for name, value in model.named_parameters() if value.requires_grad} - set(model.temporal_state())
        if others:
            raise InputError(
                f"without labels only adapters and pooling can be trained, but the model trains {sorted(others)[:3]} "
                "too: leave model.tune and model.head at their defaults"
            )
        vision = model.backbone.vision
        self.model = model
        self.teacher = VideoEncoder(model.backbone)
        sizes = Sizes(model.num_frames, vision.width, vision.embed_dim, vision.grid)
        # Checkpoints contain the name `terms`.
        self.terms: Any = nn.ModuleDict({name: PRETEXT_TASKS[name](config, sizes) for name, config in tasks.items()})

    @property
    def only_reorders(self) -> bool:
        """True if the features of frames can be stored, since all tasks leave frames as they are."""
        return all(task.only_reorders for task in self.terms.values())

    @property
    def video_model(self) -> VideoCLIP:
        """The trained model."""
        return self.model

    def trained_state(self) -> dict[str, Tensor]:
        """Return the trained weights of model and heads by name in `state_dict`.

        A checkpoint contains the heads, a model folder does not.
        """
        own = {f"model.{name}": tensor for name, tensor in self.model.trained_state().items()}
        return own | {f"terms.{name}": tensor for name, tensor in self.terms.state_dict(keep_vars=True).items()}

    def forward(self, frames: Tensor | FrozenFeatures, generators: dict[str, list[Generator]]) -> tuple[Losses, Losses]:
        """Return the weighted losses of a batch, including those of the adapters, and figures for the log.

        Args:
            frames: Normalized frames [B, T, 3, S, S], or their output of `encoder.lower` if all tasks only reorder.
            generators: For each task, one generator per clip.
        """
        # Without a task with complete clips, the original clips are encoded too, under the name None.
        original = frames.tokens if isinstance(frames, FrozenFeatures) else frames
        changes = {name: task.change(original, generators[name]) for name, task in self.terms.items()}
        drawn = {name: change[1] for name, change in changes.items() if change is not None}
        clips: dict[str | None, Tensor | FrozenFeatures] = {
            name: frames._replace(tokens=change[0]) if isinstance(frames, FrozenFeatures) else change[0]
            for name, change in changes.items()
            if change is not None
        }
        whole = next((name for name in drawn if self.terms[name].whole), None)
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

    def _encode(
        self, clips: dict[str | None, Tensor | FrozenFeatures], whole: str | None
    ) -> tuple[dict[str | None, Features], Losses]:
        """Return student features of several batches of clips, and the mean losses of its adapters over them.

        Masked clips do not update the running statistics of BatchNorm, which are for whole clips.
        """
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
    """Losses of a `SelfSupervisedModel`'s tasks.

    Attributes:
        seed: Seed of the draws of the tasks.
        tasks: Names of the tasks.
    """

    seed: int
    tasks: tuple[str, ...]

    def __call__(self, model: nn.Module, batch: Batch, epoch: int) -> tuple[Tensor, Losses]:
        """Return the loss of a batch, and its detached parts and figures."""
        keys = list(zip(batch["epoch"].tolist(), batch["index"].tolist(), strict=True))
        generators = {
            name: [keyed_generator(self.seed, *key, zlib.crc32(name.encode())) for key in keys] for name in self.tasks
        }
        losses, figures = model(batch["frames"], generators)
        loss, parts = total_loss(losses)
        return loss, parts | {name: value.detach() for name, value in figures.items()}


@torch.no_grad()
def collapse_metrics(features: Tensor) -> Losses:
    """Return measures of collapse of features [B, E].

    `feature_std` is the standard deviation of their directions, 1 if these are spread evenly. `effective_rank` is at
    most B.
    """
    directions = F.normalize(features.float(), dim=-1)
    std = directions.std(dim=0, unbiased=False).mean() * features.shape[1] ** 0.5
    rank = effective_rank(directions.nan_to_num()) + 0 * std  # svd needs finite numbers; adding std restores NaN
    return {"feature_std": std, "effective_rank": rank}


def effective_rank(features: Tensor) -> Tensor:
    """Return the effective rank of features [V, E], a scalar from 1 to min(V, E).

    It is the exponential of the entropy of their singular values (RankMe, https://arxiv.org/abs/2210.02885).
    """
    values = torch.linalg.svdvals(features)
    return torch.special.entr(values / values.sum()).sum().exp()
