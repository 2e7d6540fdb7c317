"""The config of a model, and the typed form that it is parsed into once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from clipvid import InputError
from clipvid.adapters import AdapterConfig, AdapterSpec, resolve_adapters
from clipvid.model.heads import HEADS
from clipvid.model.pooling import POOLING
from clipvid.model.tuning import Tuning, resolve_tuning
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
        """Typed options. They are not stored, since jsonargparse takes every attribute for an option."""
        return ModelParts(
            resolve_adapters(self.adapter),
            POOLING.resolve(self.pooling),
            HEADS.resolve(self.head),
            resolve_tuning(self.tune),
        )
