"""The config of a model, and the typed form that it is parsed into once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from clipvid import InputError
from clipvid.adapters import ADAPTERS, AdapterConfig, AdapterSpec, resolve_adapters
from clipvid.model.heads import HEADS
from clipvid.model.pooling import POOLING
from clipvid.model.tuning import TUNING, Tuning, resolve_tuning
from clipvid.registry import Choice, Chosen


@dataclass(frozen=True)
class ModelParts:
    """The choices of a `ModelConfig` with typed, checked options. Adapters are in the order of the config."""

    adapters: Mapping[str, AdapterConfig]
    pooling: Chosen
    head: Chosen
    tuning: Tuning


@dataclass(frozen=True)
class ModelConfig:
    """Config of a `VideoCLIP`. A wrong name or option is refused when the config is made.

    backbone, pretrained, image_size: see `clipvid.backbone.load_backbone`.
    adapter: a name of `clipvid.ADAPTERS`, `{"name": ..., options}`, or a list of these.
    num_frames: frames T per clip that the model is made for.
    pooling: `mean` or `mit` (`{"name": "mit", "layers": 1}`) over frames.
    head: `text` (`{"name": "text", "prompt_layers": 2}` for video-specific prompts) or `linear`.
    tune: parts that are trained, any of `adapters`, `head` (with pooling), `lora`, `layernorm`, `partial`, `full`
        (image tower), `coop`, `text` (text tower), by name or with options (`{"name": "lora", "rank": 16}`); see
        `clipvid.model.tuning`.
    init_from: a model folder, or such a repository on the Hub, whose weights training starts from. It is not part of a
        saved model.
    """

    backbone: str = "tiny"
    pretrained: str | None = None
    adapter: AdapterSpec = "ila"
    num_frames: int = 8
    image_size: int | None = None
    pooling: Choice = "mean"
    head: Choice = "text"
    tune: list[Choice] = field(default_factory=lambda: ["adapters", "head"])
    init_from: str | None = None

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise InputError(f"num_frames={self.num_frames}: a clip has at least one frame")
        parts = self.parts
        if parts.tuning.trains_text and not HEADS[parts.head.name].needs_text:
            raise InputError(f"tune={self.tune}: a {parts.head.name} head does not use the text tower; leave it frozen")

    @property
    def parts(self) -> ModelParts:
        """Typed options, resolved once. They are not stored: jsonargparse would take an attribute for an option."""
        choices: list[Any] = [self.adapter, self.pooling, self.head, self.tune]
        try:
            key = json.dumps(choices)
        except (TypeError, ValueError):  # not JSON: an error that names the option, or one that needs no cache
            return _resolve(*choices)
        return _resolve_once(key, tuple(entry for registry in _REGISTRIES for entry in registry.values()))


_REGISTRIES = (ADAPTERS, POOLING, HEADS, TUNING)


def _resolve(adapter: AdapterSpec, pooling: Choice, head: Choice, tune: list[Choice]) -> ModelParts:
    return ModelParts(resolve_adapters(adapter), POOLING.resolve(pooling), HEADS.resolve(head), resolve_tuning(tune))


@lru_cache(maxsize=256)
def _resolve_once(choices: str, entries: tuple[Any, ...]) -> ModelParts:
    """Return the parts of JSON choices. `entries` is part of the key, since a class may replace one of its name."""
    return _resolve(*json.loads(choices))
