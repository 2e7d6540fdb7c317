"""Low-rank updates of the towers' linears (LoRA), by peft."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from clipvid import InputError
from clipvid.adapters.base import LayerSpec, check_layers, select_layers
from clipvid.layers.attention import MaskedAttention, SelfAttention

if TYPE_CHECKING:
    from clipvid.backbone import TextTower

# Names of linears in the blocks of open_clip and of timm.
_LINEARS = {
    "q": r"attn\.(?:q|q_proj)",
    "k": r"attn\.(?:k|k_proj)",
    "v": r"attn\.(?:v|v_proj)",
    "out": r"attn\.(?:out|proj)",
    "c_fc": r"mlp\.(?:c_fc|fc1)",
    "c_proj": r"mlp\.(?:c_proj|fc2)",
}


_TOWERS = ("image", "text")


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank updates `scale * B A` of linears (https://arxiv.org/abs/2106.09685), with `scale = alpha / rank`.

    Attributes:
        rank: Rank of the updates.
        alpha: Numerator of the scale.
        dropout: Probability of dropout on the input of A.
        targets: Linears of a block: `q`, `k`, `v`, `out` of the attention, `c_fc`, `c_proj` of the MLP.
        towers: `image`, `text` or both.
        layers: Blocks of the image tower, as of adapters: `all`, `upper`, `[-2, -1]`, see `AdapterConfig`.
    """

    papers: ClassVar[tuple[str, ...]] = ("Hu et al., ICLR 2022, https://arxiv.org/abs/2106.09685",)

    rank: int = 8
    alpha: float = 16
    dropout: float = 0.0
    targets: list[str] = field(default_factory=lambda: ["q", "k", "v", "out"])
    towers: list[str] = field(default_factory=lambda: ["image"])
    layers: LayerSpec = "all"

    def __post_init__(self) -> None:
        check_layers(self.layers)
        for name, allowed in (("targets", _LINEARS), ("towers", _TOWERS)):
            names = getattr(self, name)
            if not names or not isinstance(names, list) or not set(names) <= set(allowed):
                raise InputError(f"lora: {name}={names!r}; expected a list of some of {', '.join(allowed)}")
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise InputError(f"lora: rank={self.rank} must be at least 1, dropout={self.dropout} in [0, 1)")


def add_lora(model: nn.Module, text: TextTower, config: LoraConfig) -> None:
    """Add peft's LoRA layers to the towers of a `VideoCLIP`. Updates start at zero, and peft freezes everything else.

    Raises:
        InputError: A tower has no such linears, or no such blocks.
    """
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    if "text" in config.towers:
        for block in text.transformer.transformer.resblocks:
            if isinstance(block.attn, nn.MultiheadAttention):
                block.attn = MaskedAttention.from_fused(block.attn)
    names = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if config.rank > max(linear.in_features for linear in names.values()):
        raise InputError(f"lora: rank={config.rank} exceeds the width of every linear; usual values are 4 to 64")
    chosen = select_layers(config.layers, len(model.encoder.layers))  # type: ignore[union-attr, arg-type]
    blocks = {
        "image": rf"encoder\.layers\.(?:{'|'.join(map(str, chosen))})\.block",
        "text": r"text\.clip(\.text)?\.transformer\.resblocks\.\d+",
    }
    for tower, target in product(config.towers, config.targets):
        if not any(re.fullmatch(rf"{blocks[tower]}\.{_LINEARS[target]}", name) for name in names):
            raise InputError(
                f"lora: the {tower} tower's attention or MLP is not supported and has no linear {target}; "
                "choose other targets, or tune layernorm, partial or full"
            )
    places = "|".join(blocks[tower] for tower in config.towers)
    linears = "|".join(_LINEARS[target] for target in config.targets)
    inject_adapter_in_model(
        PeftConfig(
            r=config.rank,
            lora_alpha=config.alpha,  # type: ignore[arg-type]
            lora_dropout=config.dropout,
            target_modules=rf"(?:{places})\.(?:{linears})",
        ),
        model,
    )


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the matrices A and B of every LoRA layer."""
    from peft.tuners.lora import LoraLayer

    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    return [value for layer in layers for part in (layer.lora_A, layer.lora_B) for value in part.parameters()]


def lora_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of every LoRA layer under peft's names, empty without LoRA."""
    if not hasattr(model, "peft_config"):
        return {}
    from peft import get_peft_model_state_dict

    return {f"base_model.model.{name}": value for name, value in get_peft_model_state_dict(model).items()}


@torch.no_grad()
def merge_lora(model: nn.Module, text: TextTower) -> None:
    """Replace every LoRA layer by one linear with the update added to its weight, a new tensor."""
    from peft.tuners.lora import LoraLayer

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
