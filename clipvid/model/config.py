"""Config of a model, and the typed form into which it is parsed once."""

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


def default_adapter() -> dict[str, Any]:
    """Return the default of `ModelConfig.adapter`."""
    return {"name": "temporal_conv", "layers": [-2, -1]}


@dataclass(frozen=True)
class ModelParts:
    """Typed, checked options of a `ModelConfig`. Adapters are in the order of the config."""

    adapters: Mapping[str, AdapterConfig]
    pooling: Chosen
    head: Chosen
    tuning: Tuning


@dataclass(frozen=True)
class ModelConfig:
    """Config of a `VideoCLIP`. Unknown names and invalid options are refused on construction.

    Attributes:
        backbone: CLIP model, see `clipvid.backbone.load_backbone`.
        pretrained: Weights of the CLIP model, see `clipvid.backbone.load_backbone`.
        adapter: A name of `clipvid.ADAPTERS`, `{"name": ..., options}`, or a list of these. The default is a
            convolution over time in the last two blocks. Of single adapters, it has the highest mean in five of the six
            tables of docs/results/real-video.md.
        num_frames: Number of frames T per clip.
        image_size: Side of the images in pixels, if it differs from the pretrained one.
        pooling: Pooling over frames, `mean` or `mit` (`{"name": "mit", "layers": 1}`).
        head: `text` (`{"name": "text", "prompt_layers": 2}` for video-specific prompts) or `linear`.
        tune: Trained parts, any of `adapters`, `head` (with pooling), `lora`, `layernorm`, `partial`, `full` (image
            tower), `coop`, `text` (text tower). Each is a name or has options (`{"name": "lora", "rank": 16}`); see
            `clipvid.model.tuning`.
        init_from: Model folder or Hub repository whose weights training starts from. Not part of a saved model.
        pixel_mean: Mean of the pixels of each channel in 0..1. By default that of the CLIP model.
        pixel_std: Standard deviation of the pixels of each channel in 0..1. By default that of the CLIP model.
        multi_label: Let a clip have any number of classes, each with a probability by itself (sigmoid). By default, a
            training takes this from its list of videos.
    """

    backbone: str = "tiny"
    pretrained: str | None = None
    adapter: AdapterSpec = field(default_factory=default_adapter)
    num_frames: int = 8
    image_size: int | None = None
    pooling: Choice = "mean"
    head: Choice = "text"
    tune: list[Choice] = field(default_factory=lambda: ["adapters", "head"])
    init_from: str | None = None
    pixel_mean: tuple[float, float, float] | None = None
    pixel_std: tuple[float, float, float] | None = None
    multi_label: bool | None = None

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise InputError(f"num_frames={self.num_frames} must be at least 1")
        if not all(0 <= value <= 1 for value in self.pixel_mean or ()):
            raise InputError(f"pixel_mean={self.pixel_mean}: expected values from 0 to 1, not from 0 to 255")
        if not all(0 < value <= 1 for value in self.pixel_std or ()):
            raise InputError(f"pixel_std={self.pixel_std}: expected values above 0, up to 1")
        parts = self.parts
        if parts.tuning.trains_text and not HEADS[parts.head.name].needs_text:
            raise InputError(f"tune={self.tune}: a {parts.head.name} head does not use the text tower; leave it frozen")

    @property
    def parts(self) -> ModelParts:
        """Typed options, resolved once. They are not stored, since jsonargparse treats attributes as options."""
        choices: list[Any] = [self.adapter, self.pooling, self.head, self.tune]
        try:
            key = json.dumps(choices)
        except (TypeError, ValueError):  # not JSON: resolving reports the option, or works without a cache
            return _resolve(*choices)
        return _resolve_once(key, tuple(entry for registry in _REGISTRIES for entry in registry.values()))


_REGISTRIES = (ADAPTERS, POOLING, HEADS, TUNING)


def _resolve(adapter: AdapterSpec, pooling: Choice, head: Choice, tune: list[Choice]) -> ModelParts:
    return ModelParts(resolve_adapters(adapter), POOLING.resolve(pooling), HEADS.resolve(head), resolve_tuning(tune))


@lru_cache(maxsize=256)
def _resolve_once(choices: str, entries: tuple[Any, ...]) -> ModelParts:
    """Return the parts of JSON choices. `entries` belongs to the key, since classes may be re-registered."""
    return _resolve(*json.loads(choices))
