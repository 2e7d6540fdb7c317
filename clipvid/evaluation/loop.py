"""One evaluation loop, on one process or many: every view of every video once, and what was scored is kept.

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
    """indices [V] into the manifest, ascending; labels [V]; scores [V, K], probabilities, all zero for a video that
    could not be read."""

    indices: Tensor
    labels: Tensor
    scores: Tensor


class ViewScores(NamedTuple):
    """indices [V] into the manifest, ascending; labels [V]; readable [V], bool; logits [V, C, K], float32."""

    indices: Tensor
    labels: Tensor
    readable: Tensor
    logits: Tensor

    def averaged(self, average: Average = "probabilities") -> Predictions:
        """One answer per video: the mean over its views of their probabilities, or of their logits."""
        logits = self.logits
        scores = logits.softmax(-1).mean(1) if average == "probabilities" else logits.mean(1).softmax(-1)
        return Predictions(self.indices, self.labels, scores * self.readable[:, None])

    def views(self) -> list[Predictions]:
        """What each view alone says, C of them."""
        alone = (self._replace(logits=view[:, None]) for view in self.logits.unbind(1))
        return [view.averaged() for view in alone]

    @classmethod
    def joined(cls, parts: Iterable[ViewScores]) -> ViewScores:
        """Several in one, in the order of their indices."""
        columns = [torch.cat(column) for column in zip(*parts, strict=True)]
        order = columns[0].argsort(stable=True)
        return cls(*(column[order] for column in columns))


class PredictionCache:
    """The batches of an evaluation that are scored already, a file each in `folder`.

    key: of all that the scores depend on; files of another key are not taken up.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key

    def read(self) -> dict[int, ViewScores]:
        """What is there, by the first index of the batch. Damaged files, and batches with unreadable videos, are left
        out: these are done again."""
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
        """Write a batch; the file is whole or absent."""
        tensors = {name: tensor.contiguous() for name, tensor in scored._asdict().items()}
        with replacing(self.folder / f"batch_{int(scored.indices[0]):08d}.safetensors") as aside:
            save_file(tensors, aside, metadata={"key": self.key})

    def clear(self) -> None:
        """Forget all."""
        shutil.rmtree(self.folder, ignore_errors=True)


def predict(
    accelerator: Accelerator, model: VideoCLIP, loader: DataLoader, features: FeatureCache | None = None
) -> Predictions:
    """Every video of the loader once, whatever the number of processes; the same on all of them."""
    return predict_views(accelerator, model, loader, features=features).averaged()


@torch.no_grad()
def predict_views(
    accelerator: Accelerator,
    model: VideoCLIP,
    loader: DataLoader,
    cache: PredictionCache | None = None,
    bag_of_frames: bool = False,
    features: FeatureCache | None = None,
) -> ViewScores:
    """Logits of every view of every video of the loader, whose sampler is `EvalBatches`; the same on all processes,
    and to the bit the same for any number of them.

    The loader's batches hold `frames [B, C, T, 3, S, S]`, `label [B]`, `index [B]` and `readable [B]`.

    Args:
        cache: where batches are kept as they are scored, and from where they are taken up again.
        bag_of_frames: show each frame alone, as a clip of one: C x T views.
        features: stored features, which a loader made with them returns.

    Raises:
        ValueError: nothing to evaluate.
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
                print(f"what is scored cannot be kept ({error}); the evaluation goes on without")
                cache = None
    if is_sharded(model):
        height, width = model.backbone.vision.image_shape
        clip = torch.zeros(1, model.num_frames, 3, height, width, dtype=torch.uint8, device=accelerator.device)
        for _ in range(rounds - len(loader)):  # sharded forwards are made by all together
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
