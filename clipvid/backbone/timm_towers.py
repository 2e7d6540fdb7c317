"""timm's ViTs in open_clip (SigLIP, PE-Core, EVA), split into parts like open_clip's native towers.

Fused projections become separate linears, a form that timm's attention supports too. For shapes see
`clipvid.backbone.towers`.
"""

from __future__ import annotations

from typing import Any

import torch
from open_clip.timm_model import TimmModel
from timm.layers import Attention
from timm.layers.attention import AttentionRope
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block as ViTBlock
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from torch import Tensor, nn

from clipvid import InputError
from clipvid.backbone.towers import split_parameters
from clipvid.layers.attention import SelfAttention


class TimmBlock(nn.Module):
    """Block of a timm ViT, in halves. Both return an update of the stream.

    Attributes:
        rope: Rotary position embedding of the patches, or None.
    """

    rope: Tensor | None

    def __init__(self, source: Any, rope: Tensor | None):
        super().__init__()
        self.post_norm = isinstance(source, ResPostBlock | EvaBlockPostNorm)
        self.norm1, self.norm2, self.mlp = source.norm1, source.norm2, source.mlp
        self.ls1, self.ls2 = getattr(source, "ls1", nn.Identity()), getattr(source, "ls2", nn.Identity())
        self.gamma_1, self.gamma_2 = getattr(source, "gamma_1", None), getattr(source, "gamma_2", None)
        fused = source.attn.qkv is not None
        self.attn: Any = _split_attention(source.attn)
        self.was_split = fused and getattr(self.attn, "qkv", None) is None
        self.register_buffer("rope", rope, persistent=False)

    @property
    def ln_1(self) -> nn.Module:
        """Norm of the attention."""
        return self.norm1

    def attention(self, x: Tensor) -> Tensor:
        """Return the update [M, P+N, D] of tokens [M, P+N, D]."""
        options = {} if self.rope is None else {"rope": self.rope}
        if self.post_norm:
            return self.norm1(self.attn(x, **options))
        update = self.ls1(self.attn(self.norm1(x), **options))
        return update if self.gamma_1 is None else self.gamma_1 * update

    def feed_forward(self, x: Tensor) -> Tensor:
        """Return the update [M, P+N, D] of tokens [M, P+N, D]."""
        if self.post_norm:
            return self.norm2(self.mlp(x))
        update = self.ls2(self.mlp(self.norm2(x)))
        return update if self.gamma_2 is None else self.gamma_2 * update

    def open_clip_state(self) -> dict[str, Tensor]:
        """Return weights under timm's names, with attention fused if it was fused before."""
        state = self.state_dict()
        if not self.was_split:
            return state
        plain = isinstance(self.attn, SelfAttention)
        names = ("q", "k", "v") if plain else ("q_proj", "k_proj", "v_proj")
        parts = [{kind: state.pop(f"attn.{name}.{kind}", None) for kind in ("weight", "bias")} for name in names]
        state["attn.qkv.weight"] = torch.cat([part["weight"] for part in parts if part["weight"] is not None])
        q, k, v = (part["bias"] for part in parts)
        if k is not None and q is not None and v is not None:
            state["attn.qkv.bias"] = torch.cat([q, k, v])
        elif q is not None and v is not None:
            state |= {"attn.q_bias": q, "attn.v_bias": v}
        if plain:
            outs = [key for key in state if key.startswith("attn.out.")]
            state |= {key.replace(".out.", ".proj."): state.pop(key) for key in outs}
        return state


class TimmTower(nn.Module):
    """Parts of a timm ViT outside its blocks: embedding, and pooling head with projection."""

    blocks_prefix = "trunk.blocks"

    visual: Any

    def __init__(self, visual: TimmModel):
        super().__init__()
        trunk = visual.trunk
        self.visual = visual
        self.width: int = trunk.embed_dim
        self.num_prefix: int = trunk.num_prefix_tokens
        self.grid: tuple[int, int] = tuple(trunk.patch_embed.grid_size)
        self.image_shape: tuple[int, int] = tuple(trunk.patch_embed.img_size)
        with torch.no_grad():
            tokens = torch.zeros(1, self.num_prefix + self.grid[0] * self.grid[1], self.width)
            self.embed_dim: int = self.head(tokens).shape[-1]

    def train(self, mode: bool = True) -> TimmTower:
        """Set the mode. The BatchNorm of a stem keeps its pretrained statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    @property
    def pools_prefix(self) -> bool:
        """True if `head` reads only the prefix tokens."""
        trunk = self.visual.trunk
        return self.num_prefix > 0 and trunk.global_pool == "token" and getattr(trunk, "attn_pool", None) is None

    def embed(self, images: Tensor) -> Tensor:
        """Embed normalized images [M, 3, S, S] as tokens [M, P+N, D]."""
        trunk = self.visual.trunk
        tokens = trunk._pos_embed(trunk.patch_embed(images))
        return trunk.norm_pre(tokens[0] if isinstance(trunk, Eva) else tokens)

    def head(self, tokens: Tensor) -> Tensor:
        """Pool tokens of the last block [M, P+N, D] to image features [M, E], not normalized."""
        trunk = self.visual.trunk
        return self.visual.head(trunk.forward_head(trunk.norm(tokens)))

    def ends(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Return the parameters before and after the blocks."""
        last = ("trunk.norm.", "trunk.fc_norm.", "trunk.attn_pool.", "trunk.head.", "head.")
        return split_parameters(self.visual, last)


def take_timm_apart(visual: TimmModel, name: str) -> tuple[TimmTower, list[Any]]:
    """Return embedding and head, and the blocks. `visual` is left without its blocks.

    Raises:
        InputError: The tower does not consist of ViT blocks.
    """
    trunk: Any = visual.trunk
    block_types = (ViTBlock, ResPostBlock, EvaBlock, EvaBlockPostNorm)
    if not isinstance(trunk, VisionTransformer | Eva) or any(type(block) not in block_types for block in trunk.blocks):
        kinds = {type(trunk).__name__, *(type(block).__name__ for block in getattr(trunk, "blocks", []))}
        raise InputError(
            f"backbone {name!r} has an image tower of timm that is not a plain ViT ({', '.join(sorted(kinds))}); "
            "supported: SigLIP, SigLIP2, PE-Core, MobileCLIP-B and EVA"
        )
    if getattr(trunk, "rope_mixed", False):
        raise InputError(f"backbone {name!r} has rotary embeddings that differ between its blocks: not supported")
    rope = getattr(trunk, "rope", None)
    if rope is not None:
        rope = rope.get_embed() if hasattr(rope, "feat_shape") else rope.get_embed(shape=trunk.patch_embed.grid_size)
    blocks = [TimmBlock(block, rope) for block in trunk.blocks]
    trunk.blocks = nn.Sequential()
    return TimmTower(visual), blocks


def _split_attention(attention: Any) -> Any:
    """Split the fused projection into linears for q, k and v. Plain attention becomes `SelfAttention`."""
    kind = type(attention)
    if attention.qkv is None or kind not in (Attention, AttentionRope, EvaAttention):
        return attention
    weights = attention.qkv.weight.chunk(3)
    biases: Any = [None] * 3
    if attention.qkv.bias is not None:
        biases = attention.qkv.bias.chunk(3)
    elif getattr(attention, "q_bias", None) is not None:
        biases = [attention.q_bias, None, attention.v_bias]
    linears = [_linear(weight, bias) for weight, bias in zip(weights, biases, strict=True)]
    if kind is Attention:
        extra = (attention.q_norm, attention.k_norm, attention.norm)
        if attention.gate is not None or not all(isinstance(module, nn.Identity) for module in extra):
            return attention
        plain = SelfAttention(attention.qkv.in_features, attention.num_heads)
        plain.q, plain.k, plain.v = linears
        plain.out = attention.proj
        return plain
    attention.q_proj, attention.k_proj, attention.v_proj = linears
    attention.qkv = None
    if kind is EvaAttention:
        attention.q_bias = attention.k_bias = attention.v_bias = None
    return attention


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    return linear
