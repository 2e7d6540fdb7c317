"""Evaluation loop, on one process or many, with cached scores of every view of every video.

Shapes: V videos, C views of each, T frames, K classes, S image side.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, send_to_device
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader

from clipvid import InputError
from clipvid.data.batches import EvalBatches
from clipvid.distributed import is_sharded, share_buffers
from clipvid.files import replacing
from clipvid.model.encoder import FrozenFeatures
from clipvid.model.feature_cache import FeatureCache
from clipvid.model.video_clip import VideoCLIP

Average = Literal["probabilities", "logits"]


class Predictions(NamedTuple):
    """Predictions for videos.

    Attributes:
        indices: [V], indices into the manifest, ascending.
        labels: [V], or bool [V, K] for a list with several labels per video.
        scores: [V, K], probabilities, all zero for an unreadable video.
    """

    indices: Tensor
    labels: Tensor
    scores: Tensor


class ViewScores(NamedTuple):
    """Logits of every view of videos.

    Attributes:
        indices: [V], indices into the manifest, ascending.
        labels: [V], or bool [V, K] for a list with several labels per video.
        readable: [V], bool.
        logits: [V, C, K], float32.
    """

    indices: Tensor
    labels: Tensor
    readable: Tensor
    logits: Tensor

    def averaged(self, average: Average = "probabilities", ranks_only: bool = False) -> Predictions:
        """Return one prediction per video: the mean over its views of probabilities or logits.

        Args:
            average: What is averaged.
            ranks_only: The logits are those of a model for one label per video, on a list with several. They are
                moved by one number for all videos and classes, so that their sigmoids differ.
        """
        logits = self.logits
        if self.labels.ndim == 1:
            scores = logits.softmax(-1).mean(1) if average == "probabilities" else logits.mean(1).softmax(-1)
            return Predictions(self.indices, self.labels, scores * self.readable[:, None])
        if ranks_only and self.readable.any():
            logits = logits - logits[self.readable].mean()
        scores = logits.sigmoid().mean(1) if average == "probabilities" else logits.mean(1).sigmoid()
        scores = scores.clamp(min=torch.finfo(scores.dtype).tiny)  # zeros mean unreadable
        return Predictions(self.indices, self.labels, scores * self.readable[:, None])

    def views(self, ranks_only: bool = False) -> list[Predictions]:
        """Return the predictions of each view alone, C of them."""
        alone = (self._replace(logits=view[:, None]) for view in self.logits.unbind(1))
        return [view.averaged(ranks_only=ranks_only) for view in alone]

    @classmethod
    def joined(cls, parts: Iterable[ViewScores]) -> ViewScores:
        """Concatenate several, in the order of their indices."""
        columns = [torch.cat(column) for column in zip(*parts, strict=True)]
        order = columns[0].argsort(stable=True)
        return cls(*(column[order] for column in columns))


class PredictionCache:
    """Cache of scored batches of an evaluation, one file each in `folder`.

    `key` is a hash of everything that the scores depend on. Files with another key are ignored.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key

    def read(self) -> dict[int, ViewScores]:
        """Return the cached batches by their first index.

        Damaged files, and batches with unreadable videos, are omitted, so that they are computed again.
        """
        batches = {}
        for path in sorted(self.folder.glob("batch_*.safetensors")):
            try:
                with safe_open(path, "pt") as file:
                    if (file.metadata() or {}).get("key") == self.key:
                        scored = ViewScores(*(file.get_tensor(name) for name in ViewScores._fields))
                        if scored.readable.all():
                            batches[int(scored.indices[0])] = scored
            except (SafetensorError, OSError, IndexError):
                continue
        return batches

    def write(self, scored: ViewScores) -> None:
        """Write a batch atomically."""
        tensors = {name: tensor.contiguous() for name, tensor in scored._asdict().items()}
        with replacing(self.folder / f"batch_{int(scored.indices[0]):08d}.safetensors") as aside:
            save_file(tensors, aside, metadata={"key": self.key})

    def clear(self) -> None:
        """Delete all batches."""
        shutil.rmtree(self.folder, ignore_errors=True)


def predict(
    accelerator: Accelerator, model: VideoCLIP, loader: DataLoader, features: FeatureCache | None = None
) -> Predictions:
    """Predict every video of the loader once, over all processes, with the same result on each of them."""
    views = predict_views(accelerator, model, loader, features=features)
    return views.averaged(ranks_only=not model.config.multi_label)


@torch.no_grad()
def predict_views(
    accelerator: Accelerator,
    model: VideoCLIP,
    loader: DataLoader,
    cache: PredictionCache | None = None,
    bag_of_frames: bool = False,
    features: FeatureCache | None = None,
) -> ViewScores:
    """Return the logits of every view of every video of the loader, whose sampler is `EvalBatches`.

    The result is the same on all processes, and bitwise the same for any number of them. Batches have `frames [B, C, T,
    3, S, S]`, `label [B]`, `index [B]` and `readable [B]`.

    Args:
        accelerator: The Accelerator.
        model: The model.
        loader: The loader.
        cache: Cache that batches are read from and written to.
        bag_of_frames: Show each frame alone, as a clip of one frame: C x T views.
        features: Stored features, which a loader made with them returns.

    Raises:
        InputError: The evaluation set is empty.
    """
    held = cache.read() if cache is not None and accelerator.is_main_process else {}
    batches: EvalBatches = loader.batch_sampler  # type: ignore[assignment]
    batches.skip(broadcast_object_list([list(held)])[0])
    share_buffers(accelerator, model)
    training = model.training
    model.eval()
    rows = list(held.values())
    rounds = max(gather_object([len(loader)]))
    for batch in loader:
        scored = _score(accelerator, model, batch, bag_of_frames, features)
        rows.append(scored)
        if cache is not None:
            try:
                cache.write(scored)
            except OSError as error:
                print(f"scores cannot be cached ({error}); the evaluation continues without")
                cache = None
    if is_sharded(model):
        height, width = model.backbone.vision.image_shape
        clip = torch.zeros(1, model.num_frames, 3, height, width, dtype=torch.uint8, device=accelerator.device)
        for _ in range(rounds - len(loader)):  # sharded forward passes need all processes
            model(clip)
    model.train(training)
    batches.skip(())
    gathered = gather_object(rows)
    if not gathered:
        raise InputError("nothing to evaluate: the evaluation set is empty")
    return ViewScores.joined(gathered)


def _score(
    accelerator: Accelerator,
    model: VideoCLIP,
    batch: dict[str, Tensor],
    bag_of_frames: bool,
    features: FeatureCache | None,
) -> ViewScores:
    batch = send_to_device(batch, accelerator.device, non_blocking=True)
    clips: Tensor | FrozenFeatures
    if features is not None and "is_stored" in batch:
        tokens, depth = features.complete(batch)
        views, clips = tokens.shape[:2], FrozenFeatures(tokens.flatten(0, 1), depth)
    else:
        frames = batch["frames"].flatten(1, 2).unsqueeze(2) if bag_of_frames else batch["frames"]
        views, clips = frames.shape[:2], frames.flatten(0, 1)
    with accelerator.autocast():
        logits = model(clips).logits.float().unflatten(0, views)
    return ViewScores(*(part.cpu() for part in (batch["index"], batch["label"], batch["readable"], logits)))
