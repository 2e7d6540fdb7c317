"""What of a model is trained: parts by name, low-rank updates (LoRA, by peft) and learned context tokens (CoOp)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from clipvid import InputError
from clipvid.backbone import Backbone
from clipvid.model.context import ContextConfig
from clipvid.model.lora import LoraConfig, lora_parameters
from clipvid.registry import Choice, Registry


@dataclass(frozen=True)
class AdaptersConfig:
    """The temporal adapters."""


@dataclass(frozen=True)
class HeadConfig:
    """Pooling over time and the classification head."""


@dataclass(frozen=True)
class LayerNormConfig:
    """Every LayerNorm of the image tower."""


@dataclass(frozen=True)
class FullConfig:
    """The image tower."""


@dataclass(frozen=True)
class TextConfig:
    """The text tower and the scale of the logits."""


@dataclass(frozen=True)
class PartialConfig:
    """The last `blocks` blocks of the image tower and what follows them in it."""

    blocks: int = 1


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
SHARES_BACKBONE = {"adapters", "head", "lora", "coop"}  # these leave the weights of the backbone as they are


def resolve_tuning(spec: list[Choice]) -> dict[str, Any]:
    """Configs by name, in the order of the list.

    Raises:
        ValueError: an unknown part or option, the same part twice, or parts that exclude each other.
    """
    found = TUNING.resolve_many(spec)
    if "text" in found and ("coop" in found or ("lora" in found and "text" in found["lora"].towers)):
        raise InputError("tune: the text tower is trained whole (text), by lora, or left frozen (coop): choose one")
    return found


def choose_trained(model: Any, backbone: Backbone, tuning: dict[str, Any], fixed: set[int]) -> None:
    """Let exactly the parts `tuning` of a `VideoCLIP` require gradients, but for parameters with an id in `fixed`."""
    image, _ = backbone.stages()
    depth = len(backbone.blocks)
    partial = tuning["partial"].blocks if "partial" in tuning else 0
    if not 0 <= partial <= depth:
        raise InputError(f"tune: partial has blocks={partial}; the image tower has {depth}")
    norms = (norm for part in model.encoder.image_tower() for norm in part.modules() if isinstance(norm, nn.LayerNorm))
    parts: dict[str, Iterable[nn.Parameter]] = {
        "adapters": (value for adapter in model.encoder.adapters() for value in adapter.parameters()),
        "head": (value for module in (model.pooling, model.head) for value in module.parameters()),
        "lora": lora_parameters(model),
        "layernorm": (value for norm in norms for value in norm.parameters()),
        "partial": (value for stage in image[depth + 1 - partial :] for value in stage),
        "full": (value for stage in image for value in stage),
        "coop": [] if model.context is None else model.context.parameters(),
        "text": backbone.text.parameters(),
    }
    model.requires_grad_(False)
    for name in tuning:
        for value in parts[name]:
            value.requires_grad_(id(value) not in fixed)


def tuning_record(tuning: dict[str, Any]) -> list[Choice]:
    """The inverse of `resolve_tuning`, with every option written out."""
    return [
        {"name": name, **dataclasses.asdict(config)} if dataclasses.fields(config) else name
        for name, config in tuning.items()
    ]
