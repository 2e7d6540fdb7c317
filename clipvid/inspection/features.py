"""The pass over all clips: frozen features, signatures and facts, stored once for each clip.

Shapes: N clips, T frames, S frames of a signature, P pixels of a side, E embedding.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from torch.utils.data import DataLoader

from clipvid import InputError
from clipvid.data.feature_store import FeatureStore, StoredFeatures
from clipvid.data.loader import worker_options
from clipvid.data.transforms import eval_transform
from clipvid.files import cache_folder, hash_key
from clipvid.hub.loading import from_pretrained, is_saved
from clipvid.inspection.clips import ClipList
from clipvid.inspection.config import InspectConfig
from clipvid.inspection.reading import ClipReader, ClipReading, write_stored
from clipvid.inspection.signatures import ClipFacts
from clipvid.model.encoder import VideoEncoder
from clipvid.model.factory import create_model
from clipvid.model.video_clip import VideoCLIP
from clipvid.runs.progress import Progress

_FORMAT = 3
_GIB = 2**30


@dataclass(frozen=True)
class Readings:
    """Results of the pass. Row n of the tensors belongs to clip `places[n]`.

    Attributes:
        places: Numbers of the readable clips.
        features: float16 [N, T, E].
        signatures: uint8 [N, S, P, P].
        facts: Facts of the readable clips.
        failures: Reason by number of each unreadable clip.
        computed: Number of clips that were decoded and encoded in this pass.
    """

    places: list[int]
    features: Tensor
    signatures: Tensor
    facts: list[ClipFacts]
    failures: dict[int, str]
    computed: int


class FrozenTower:
    """The image tower of a model without adapters.

    Args:
        model: The model.
    """

    def __init__(self, model: VideoCLIP) -> None:
        self.model = model.to(PartialState().device).eval()
        self.encoder = VideoEncoder(self.model.backbone).to(PartialState().device).eval()
        self.image_size = model.image_size
        self.identity = [_FORMAT, model.backbone.fingerprint(), model.image_size, model.pixel_mean.tolist()]

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Tensor:
        """Return the features float16 [B, T, E] of frames uint8 [B, T, 3, S', S']."""
        pixels = self.model.normalize(frames.to(self.model.pixel_mean.device))
        return self.encoder.lower(pixels, len(self.encoder.layers) + 1).tokens.half().cpu()


def load_tower(config: InspectConfig) -> FrozenTower:
    """Load the tower of a config.

    Raises:
        InputError: A model folder is given with `pretrained` or `image_size`.
    """
    if not is_saved(config.model):
        return FrozenTower(
            create_model(
                config.model,
                config.pretrained,
                adapter="none",
                num_frames=config.num_frames,
                image_size=config.image_size,
            )
        )
    if config.pretrained is not None or config.image_size is not None:
        raise InputError(f"{config.model} is a saved model; remove pretrained and image_size")
    return FrozenTower(from_pretrained(config.model))


def read_all(
    clips: ClipList, tower: FrozenTower, config: InspectConfig, enabled: bool = True, folder: Path | None = None
) -> Readings:
    """Read all clips, and compute the features of those that are not stored.

    Args:
        clips: The clips.
        tower: The tower.
        config: The config.
        enabled: Show the progress.
        folder: Folder of stored features, by default that of the cache.
    """
    store = FeatureStore(folder or cache_folder() / "inspection", int(config.cache_gib * _GIB))
    stored = StoredFeatures(store, hash_key(tower.identity, config.num_frames))
    reader = ClipReader(clips, config.num_frames, eval_transform(tower.image_size), stored)
    workers = min(config.num_workers, max(len(clips) // config.batch_size, 1)) if config.num_workers else 0
    loader: DataLoader[Any] = DataLoader(reader, config.batch_size, collate_fn=list, **worker_options(workers))
    readings: list[ClipReading] = []
    failures: dict[int, str] = {}
    done = computed = 0
    with Progress(len(clips), 0, enabled) as progress:
        for batch in loader:
            readable = [reading for reading in batch if not reading.failure]
            failures |= {reading.index: reading.failure for reading in batch if reading.failure}
            new = sum(reading.features is None for reading in readable)
            readings += _completed(readable, tower, store)
            done, computed = done + len(batch), computed + new
            progress.figures = f"{computed} new, {len(failures)} broken"
            progress.advance(done)
    if not readings:
        reasons = "; ".join(f"{clips.name(index)}: {reason}" for index, reason in list(failures.items())[:3])
        raise InputError(f"none of the {len(clips)} videos can be read ({reasons}). Check root and the list")
    return Readings(
        [reading.index for reading in readings],
        torch.stack([reading.features for reading in readings if reading.features is not None]),
        torch.stack([reading.signature for reading in readings if reading.signature is not None]),
        [reading.facts for reading in readings if reading.facts is not None],
        failures,
        computed,
    )


def _completed(readable: list[ClipReading], tower: FrozenTower, store: FeatureStore) -> list[ClipReading]:
    """Return readings with features and without frames. Encode those that have none, and store them."""
    new = [reading.frames for reading in readable if reading.frames is not None]
    features = iter(tower(torch.stack(new)) if new else ())
    result = []
    for reading in readable:
        if reading.frames is not None:
            reading = dataclasses.replace(reading, features=next(features).clone(), frames=None)
            if reading.key is not None and reading.features is not None:
                assert reading.signature is not None
                assert reading.facts is not None
                write_stored(store, reading.key, reading.features, reading.signature, reading.facts)
        result.append(reading)
    return result
