"""What of a model is trained: parts by name, low-rank updates (LoRA, by peft) and learned context tokens (CoOp)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from peft import LoraConfig as PeftConfig
from peft import inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from clipvid.attention import MaskedAttention, SelfAttention
from clipvid.backbone import Backbone, TextTower
from clipvid.choices import Choice, resolve_choice

_PLACEHOLDER = "X"  # one token wherever it stands
# Names of linears in the blocks of open_clip and of timm.
_LINEARS = {
    "q": r"attn\.(?:q|q_proj)",
    "k": r"attn\.(?:k|k_proj)",
    "v": r"attn\.(?:v|v_proj)",
    "out": r"attn\.(?:out|proj)",
    "c_fc": r"mlp\.(?:c_fc|fc1)",
    "c_proj": r"mlp\.(?:c_proj|fc2)",
}
_BLOCKS = {"image": r"encoder\.layers\.\d+\.block", "text": r"text\.clip(\.text)?\.transformer\.resblocks\.\d+"}


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


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank updates `scale * B A` beside linears (https://arxiv.org/abs/2106.09685), `scale = alpha / rank`.

    targets: linears of a block: `q`, `k`, `v`, `out` of the attention, `c_fc`, `c_proj` of the MLP.
    towers: `image`, `text` or both. dropout: of what goes into A.
    """

    rank: int = 8
    alpha: float = 16
    dropout: float = 0.0
    targets: list[str] = field(default_factory=lambda: ["q", "k", "v", "out"])
    towers: list[str] = field(default_factory=lambda: ["image"])

    def __post_init__(self) -> None:
        for name, known in (("targets", _LINEARS), ("towers", _BLOCKS)):
            given = getattr(self, name)
            if not given or not isinstance(given, list) or not set(given) <= set(known):
                raise ValueError(f"lora: {name}={given!r}; expected a list of some of {', '.join(known)}")
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise ValueError(f"lora: rank={self.rank} must be at least 1, dropout={self.dropout} lie in [0, 1)")


@dataclass(frozen=True)
class ContextConfig:
    """Vectors learned in place of the words before a class name (CoOp, https://arxiv.org/abs/2109.01134).

    tokens: how many, the same for all classes. init: words that the first of them start as; the rest are random.
    """

    tokens: int = 4
    init: str = "a video of a"

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"coop: tokens={self.tokens} must be at least 1")


TUNING: dict[str, type] = {
    "adapters": AdaptersConfig,
    "head": HeadConfig,
    "lora": LoraConfig,
    "layernorm": LayerNormConfig,
    "partial": PartialConfig,
    "full": FullConfig,
    "coop": ContextConfig,
    "text": TextConfig,
}
SHARES_BACKBONE = {"adapters", "head", "lora", "coop"}  # these leave the weights of the backbone as they are


def resolve_tuning(spec: list[Choice]) -> dict[str, Any]:
    """Configs by name, in the order of the list.

    Raises:
        ValueError: an unknown part or option, the same part twice, or parts that exclude each other.
    """
    chosen = [resolve_choice(item, TUNING, "tune") for item in spec]
    found = dict(chosen)
    if len(found) < len(chosen):
        raise ValueError(f"tune: each part may stand once, got {[name for name, _ in chosen]}")
    if "text" in found and ("coop" in found or ("lora" in found and "text" in found["lora"].towers)):
        raise ValueError("tune: the text tower is trained whole (text), by lora, or left frozen (coop): choose one")
    return found


class ContextTokens(nn.Module):
    """Learned context of a text tower. `vectors` [C, width] stand between the start token and the class name."""

    def __init__(self, config: ContextConfig, text: TextTower):
        super().__init__()
        embedding, length = text.transformer.token_embedding.weight, text.transformer.context_length
        if config.tokens > length - 3:  # beside them stand a start, an end and a name
            raise ValueError(f"coop: tokens={config.tokens}; a text of this tower has {length} tokens in all")
        self.vectors = nn.Parameter(0.02 * torch.randn(config.tokens, embedding.shape[1]))
        count = text.count_tokens(config.init)
        if count > config.tokens:
            raise ValueError(f"coop: init={config.init!r} has {count} tokens, more than tokens={config.tokens}")
        with torch.no_grad():
            self.vectors[:count] = embedding[text.tokenize([config.init])[0, 1 : 1 + count]]

    def tokenize(self, text: TextTower, names: list[str]) -> Tensor:
        """Class names -> token ids [K, 1, L] with places for the context.

        Raises:
            ValueError: names that are too long beside the context.
        """
        prompts = [
            " ".join([_PLACEHOLDER] * len(self.vectors) + [f"{name.replace('_', ' ').strip()}."]) for name in names
        ]
        tokens = text.tokenize(prompts)
        room = tokens.shape[1] - 2
        long = [name for name, prompt in zip(names, prompts, strict=True) if text.count_tokens(prompt) > room]
        if long:
            raise ValueError(
                f"coop: {len(self.vectors)} context tokens leave no room for {', '.join(long[:3])} in the text tower's "
                f"{room} tokens: choose fewer"
            )
        return tokens[:, None]


def add_lora(model: nn.Module, text: TextTower, config: LoraConfig) -> None:
    """Put peft's LoRA layers into the towers of a `VideoCLIP`; zero at first, and all else frozen by peft.

    Raises:
        ValueError: a tower without such linears.
    """
    if "text" in config.towers:
        for block in text.transformer.transformer.resblocks:
            if isinstance(block.attn, nn.MultiheadAttention):
                block.attn = MaskedAttention.from_fused(block.attn)
    names = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if config.rank > max(linear.in_features for linear in names.values()):
        raise ValueError(f"lora: rank={config.rank} is more than any linear of the model is wide; 4 to 64 are usual")
    for tower, target in product(config.towers, config.targets):
        if not any(re.fullmatch(rf"{_BLOCKS[tower]}\.{_LINEARS[target]}", name) for name in names):
            raise ValueError(
                f"lora: the {tower} tower's attention or MLP is of a kind of its own and has no linear {target}; "
                "choose other targets, or layernorm, partial or full"
            )
    blocks = "|".join(_BLOCKS[tower] for tower in config.towers)
    linears = "|".join(_LINEARS[target] for target in config.targets)
    inject_adapter_in_model(
        PeftConfig(
            r=config.rank,
            lora_alpha=config.alpha,  # type: ignore[arg-type]
            lora_dropout=config.dropout,
            target_modules=rf"(?:{blocks})\.(?:{linears})",
        ),
        model,
    )


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The matrices A and B of every LoRA layer."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    return [value for layer in layers for part in (layer.lora_A, layer.lora_B) for value in part.parameters()]


@torch.no_grad()
def merge_lora(model: nn.Module, text: TextTower) -> None:
    """Every LoRA layer becomes one linear with the update in its weight, which is a new tensor."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            linear: Any = layer.get_base_layer()
            update: Any = layer
            weight = linear.weight + update.get_delta_weight("default")
            linear.weight = nn.Parameter(weight, linear.weight.requires_grad)
            model.set_submodule(name, linear)
    for block in (module for module in text.modules() if isinstance(getattr(module, "attn", None), MaskedAttention)):
        attention: SelfAttention = block.attn  # type: ignore[assignment]
        block.attn = attention.fused().requires_grad_(False)
    del model.peft_config


def choose_trained(model: Any, backbone: Backbone, tuning: dict[str, Any], fixed: set[int]) -> None:
    """Let exactly the parts `tuning` of a `VideoCLIP` require gradients, but for parameters with an id in `fixed`."""
    image, _ = backbone.stages()
    depth = len(backbone.blocks)
    partial = tuning["partial"].blocks if "partial" in tuning else 0
    if not 0 <= partial <= depth:
        raise ValueError(f"tune: partial has blocks={partial}; the image tower has {depth}")
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
