"""Settings of an index: the model that made its features, and its windows."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path

from clipvid import InputError
from clipvid.inference.prediction_log import model_hash
from clipvid.inference.timeline_scores import check_seconds
from clipvid.model.video_clip import VideoCLIP


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """Arguments that load a model again, see `clipvid.hub.loading.load_model`.

    Attributes:
        name: Model folder, repository, or the name of a plain CLIP. A folder is an absolute path.
        pretrained: Weights of a plain CLIP.
        revision: Revision of a repository.
    """

    name: str
    pretrained: str | None = None
    revision: str | None = None

    @classmethod
    def create(cls, name: str, pretrained: str | None = None, revision: str | None = None) -> ModelSource:
        """Return the source of a model by its name on the command line."""
        return cls(os.path.abspath(name) if Path(name).is_dir() else name, pretrained, revision)


@dataclasses.dataclass(frozen=True)
class IndexSettings:
    """Settings that the features of an index depend on.

    Attributes:
        folder: Absolute path of the folder of the videos.
        fingerprint: SHA-256 of the model, see `model_fingerprint`.
        window: Seconds of a window.
        hop: Seconds between windows.
        num_frames: Frames that the model sees of a window.
        model: Name of the model, or None for a model in memory.
        pretrained: See `ModelSource`.
        revision: See `ModelSource`.
    """

    folder: str
    fingerprint: str
    window: float
    hop: float
    num_frames: int
    model: str | None = None
    pretrained: str | None = None
    revision: str | None = None

    @classmethod
    def create(
        cls, folder: Path, model: VideoCLIP, window: float, hop: float, source: ModelSource | None
    ) -> IndexSettings:
        """Return the settings of a new index.

        Raises:
            InputError: The model cannot search, or `window` or `hop` is out of range.
        """
        check_seconds(window, hop)
        check_searches(model)
        names: dict[str, str | None] = {}
        if source is not None:
            names = {"model": source.name, "pretrained": source.pretrained, "revision": source.revision}
        return cls(
            os.path.abspath(folder), model_fingerprint(model), float(window), float(hop), model.num_frames, **names
        )

    def differences(self, other: IndexSettings) -> list[str]:
        """Return the settings that differ and change the features. The name of the model does not."""
        names = ("folder", "fingerprint", "window", "hop", "num_frames")
        return [name for name in names if getattr(self, name) != getattr(other, name)]


def check_searches(model: VideoCLIP) -> None:
    """Raise InputError for a model whose video features cannot be compared with texts."""
    if not model.head.needs_text:
        kind = model.config.parts.head.name
        raise InputError(
            f"the model has the head {kind!r}, which uses no text, so a text cannot find its videos; choose a model "
            "with a text head"
        )
    if not model.text.present:
        raise InputError("the model has no text tower, so a text cannot find its videos; choose a model with one")


def model_fingerprint(model: VideoCLIP) -> str:
    """Return the SHA-256 of what the features of a model depend on: weights, structure, pixels and sampling."""
    preprocessing = None if model.preprocessing is None else model.preprocessing.record()
    parts = [model_hash(model), repr(model.config.parts), model.num_frames, model.image_size, preprocessing]
    parts += [model.pixel_mean.flatten().tolist(), model.pixel_std.flatten().tolist(), model.backbone.config]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
