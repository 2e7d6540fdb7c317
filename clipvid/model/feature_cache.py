"""Features of the frozen part of a model, computed once for each clip and read back from disk afterwards.

Shapes: B clips of which M have no stored features, T frames, P prefix tokens, N patches, D width, S image side.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from clipvid.backbone.state_dicts import hash_tensors
from clipvid.data.feature_store import FeatureStore, StoredFeatures
from clipvid.files import hash_key
from clipvid.model.encoder import FrozenFeatures
from clipvid.model.video_clip import VideoCLIP

FORMAT = 1


class FeatureCache:
    """Cache of the output of a model's frozen lower part.

    Attributes:
        store: Folder of the features.
        model: The model.
        depth: Number of blocks of the frozen part, see `VideoEncoder.lower`.
        accelerator: The Accelerator.
        computed: Number of computed clips.
        reused: Number of clips whose features were read.
    """

    def __init__(self, store: FeatureStore, model: VideoCLIP, depth: int, accelerator: Accelerator) -> None:
        self.store, self.model, self.depth, self.accelerator = store, model, depth, accelerator
        self.computed = self.reused = 0
        self._identity = [
            FORMAT,
            frozen_fingerprint(model, depth),
            [model.pixel_mean.tolist(), model.pixel_std.tolist()],
            depth,
            accelerator.mixed_precision,
            any(layer._compiled_call_impl is not None for layer in model.encoder.layers),
            accelerator.device.type,
            _versions("torch", "torchvision", "av", "decord", "torchcodec"),
        ]

    def stored(self, *recipe: Any) -> StoredFeatures:
        """Return the stored features of clips that are made by `recipe`."""
        return StoredFeatures(self.store, hash_key(self._identity, *recipe))

    @torch.no_grad()
    def complete(self, batch: dict[str, Any]) -> FrozenFeatures:
        """Return the features of a batch. Compute those that are not stored, and store them.

        Args:
            batch: see `clipvid.data.collate`, with uint8 `frames` [M, T, 3, S, S] or [M, views, T, 3, S, S].
        """
        is_stored, frames = batch["is_stored"], batch.get("frames")
        self.reused += int(is_stored.sum())
        if frames is None:
            return FrozenFeatures(batch["features"], self.depth)
        computed = self._lower(frames)
        self.computed += len(computed)
        self._write(batch, computed)
        if "features" not in batch:
            return FrozenFeatures(computed, self.depth)
        joined = computed.new_empty(len(is_stored), *computed.shape[1:])
        joined[is_stored], joined[~is_stored] = batch["features"], computed
        return FrozenFeatures(joined, self.depth)

    def record(self) -> dict[str, int | bool]:
        """Return the facts for the record of a run."""
        return {"depth": self.depth, "computed": self.computed, "reused": self.reused, "full": self.store.full}

    def _lower(self, frames: Tensor) -> Tensor:
        clips = frames.flatten(0, -5)
        with self.accelerator.autocast():
            features = self.model.encoder.lower(self.model.normalize(clips), self.depth).tokens
        return features.unflatten(0, frames.shape[:-4])

    def _write(self, batch: dict[str, Any], computed: Tensor) -> None:
        rows = [row for row, is_stored in enumerate(batch["is_stored"].tolist()) if not is_stored]
        for row, features in zip(rows, computed, strict=True):
            if batch["keys"][row] is not None:
                self.store.write(batch["keys"][row], features, batch["facts"][row])


def frozen_fingerprint(model: VideoCLIP, depth: int) -> str:
    """Return the SHA-256 of the weights and the structure of the part of a model that `VideoEncoder.lower` runs."""
    encoder = model.encoder
    digest = hashlib.sha256(json.dumps(model.backbone.config, sort_keys=True).encode())
    after = {id(value) for value in encoder.tower.ends()[1]} if depth <= len(encoder.layers) else set()
    for part in (encoder.tower, *list(encoder.layers)[:depth]):
        digest.update(repr(part).encode())
        state = part.state_dict(keep_vars=True).items()
        hash_tensors(digest, ((name, value) for name, value in state if id(value) not in after))
    for adapter in (adapter for layer in list(encoder.layers)[:depth] for adapter in layer.adapters.values()):
        digest.update(repr(adapter.config).encode())
    return digest.hexdigest()


def _versions(*packages: str) -> dict[str, str]:
    installed = {}
    for name in packages:
        with suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed
