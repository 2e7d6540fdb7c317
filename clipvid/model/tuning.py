"""Trained parts of a model, by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from clipvid import InputError
from clipvid.model.context import ContextConfig
from clipvid.model.lora import LoraConfig, lora_parameters
from clipvid.registry import Choice, Registry, config_to_choice

if TYPE_CHECKING:
    from clipvid.backbone import Backbone


@dataclass(frozen=True)
class AdaptersConfig:
    """Options for training the temporal adapters (none)."""


@dataclass(frozen=True)
class HeadConfig:
    """Options for training pooling and classification head (none)."""


@dataclass(frozen=True)
class LayerNormConfig:
    """Options for training every LayerNorm of the image tower (none)."""


@dataclass(frozen=True)
class FullConfig:
    """Options for training the image tower (none)."""


@dataclass(frozen=True)
class TextConfig:
    """Options for training the text tower and the scale of the logits (none)."""


@dataclass(frozen=True)
class PartialConfig:
    """Options for training the last blocks of the image tower and the layers after them.

    Attributes:
        blocks: Number of blocks.
    """

    blocks: int = 1

    def __post_init__(self) -> None:
        if self.blocks < 0:
            raise InputError(f"tune partial: blocks={self.blocks} must be at least 0")


TUNING = Registry(
    "tune",
    {
        "adapters": AdaptersConfig,
        "head": HeadConfig,
        "lora": LoraConfig,
        "layernorm": LayerNormConfig,
        "partial": PartialConfig,
        "full": FullConfig,
        "coop": ContextConfig,
        "text": TextConfig,
    },
)
_SHARES_BACKBONE = {"adapters", "head", "lora", "coop"}  # parts that do not change the weights of the backbone


@dataclass(frozen=True)
class Tuning:
    """Trained parts of a model: options by name, in the order of `tune`."""

    parts: Mapping[str, Any]

    @property
    def lora(self) -> LoraConfig | None:
        """Options of LoRA, or None."""
        return self.parts.get("lora")

    @property
    def context(self) -> ContextConfig | None:
        """Options of the learned context tokens, or None."""
        return self.parts.get("coop")

    @property
    def keeps_backbone(self) -> bool:
        """True if no weight of the backbone is trained."""
        return self.parts.keys() <= _SHARES_BACKBONE

    @property
    def trains_text(self) -> bool:
        """True if the text tower or its input is trained."""
        return bool({"text", "coop"} & self.parts.keys()) or (self.lora is not None and "text" in self.lora.towers)

    def without(self, name: str) -> Tuning:
        """Return the same parts without `name`."""
        return Tuning({key: config for key, config in self.parts.items() if key != name})

    def record(self) -> list[Choice]:
        """Return the inverse of `resolve_tuning`, with all options explicit."""
        return [
            config_to_choice(name, config) if dataclasses.fields(config) else name
            for name, config in self.parts.items()
        ]


def resolve_tuning(spec: list[Choice]) -> Tuning:
    """Return the typed form of `tune`.

    Raises:
        InputError: A part or option is unknown, a part is listed twice, or parts exclude each other.
    """
    tuning = Tuning(TUNING.resolve_many(spec))
    lora_in_text = tuning.lora is not None and "text" in tuning.lora.towers
    if "text" in tuning.parts and ("coop" in tuning.parts or lora_in_text):
        raise InputError("tune: the text tower is trained whole (text), by lora, or left frozen (coop): choose one")
    return tuning


def set_trainable(model: Any, backbone: Backbone, tuning: Tuning, fixed: set[int]) -> None:
    """Make exactly the parts `tuning` of a `VideoCLIP` require gradients, except parameters with an id in `fixed`.

    Raises:
        InputError: The image tower has fewer blocks than requested.
    """
    image, _ = backbone.stages()
    depth = len(backbone.blocks)
    partial = tuning.parts["partial"].blocks if "partial" in tuning.parts else 0
    if partial > depth:
        raise InputError(f"tune: partial has blocks={partial}; the image tower has {depth}")
    norms = (norm for part in model.encoder.image_tower() for norm in part.modules() if isinstance(norm, nn.LayerNorm))
    parts: dict[str, Iterable[nn.Parameter]] = {
        "adapters": (value for adapter in model.encoder.adapters() for value in adapter.parameters()),
        "head": [*model.pooling.parameters(), *model.head.parameters(), *filter(None.__ne__, [model.label_bias])],
        "lora": lora_parameters(model),
        "layernorm": (value for norm in norms for value in norm.parameters()),
        "partial": (value for stage in image[depth + 1 - partial :] for value in stage),
        "full": (value for stage in image for value in stage),
        "coop": [] if model.context is None else model.context.parameters(),
        "text": backbone.text.parameters(),
    }
    model.requires_grad_(False)
    for name in tuning.parts:
        for value in parts[name]:
            value.requires_grad_(id(value) not in fixed)
