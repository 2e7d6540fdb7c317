"""Self-attention with separate linears for q, k, v and out, instead of the fused `nn.MultiheadAttention`.

Four plain linears can be adapted, compiled and sharded as such. Shapes: M sequences of L tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Multi-head self-attention with one linear each for q, k, v and out. [M, L, D] -> [M, L, D]."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    @classmethod
    def from_fused(cls, fused: nn.MultiheadAttention) -> SelfAttention:
        """Build the same map as `fused`, with its weights copied."""
        attention = cls(fused.embed_dim, fused.num_heads)
        attention.load_state_dict(split_projection(fused.state_dict()))
        return attention

    def fused(self) -> nn.MultiheadAttention:
        """Return the equivalent `nn.MultiheadAttention`; inverse of `from_fused`."""
        weight: Tensor = self.q.weight
        made_as: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        fused = nn.MultiheadAttention(self.q.in_features, self.num_heads, batch_first=True, **made_as)
        state = fuse_projection({f"attn.{name}": value for name, value in self.state_dict().items()})
        fused.load_state_dict({name.removeprefix("attn."): value for name, value in state.items()})
        return fused

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend within sequences [M, L, D]. `mask` broadcasts to [M, heads, L, L]."""
        q, k, v = (part(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))

    @torch.no_grad()
    def mean_weights(self, x: Tensor) -> Tensor:
        """Return the weights [M, L, L] of sequences [M, L, D], averaged over heads."""
        q, k = (part(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (self.q, self.k))
        return (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1).mean(dim=1)


class MaskedAttention(SelfAttention):
    """`SelfAttention` with the call signature of `nn.MultiheadAttention`, for open_clip's text blocks."""

    def forward(  # type: ignore[override]
        self, x: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Attend within `x`; `key` and `value` must be `x`."""
        if attn_mask is not None and attn_mask.ndim == 3:  # CoCa passes one per sequence and head
            attn_mask = attn_mask.unflatten(0, (len(x), self.num_heads))
        return super().forward(x, attn_mask), None


def split_projection(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert the state dict of MultiheadAttention to SelfAttention's names."""
    split = {f"out.{kind}": state[f"out_proj.{kind}"] for kind in ("weight", "bias")}
    for kind in ("weight", "bias"):
        for part, value in zip("qkv", state[f"in_proj_{kind}"].chunk(3), strict=True):
            split[f"{part}.{kind}"] = value
    return split


def fuse_projection(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert attention names in a block's state dict from SelfAttention to MultiheadAttention. Keep other entries."""
    if "attn.q.weight" not in state:
        return state
    fused = {key: value for key, value in state.items() if not key.startswith("attn.")}
    for kind in ("weight", "bias"):
        fused[f"attn.in_proj_{kind}"] = torch.cat([state[f"attn.{part}.{kind}"] for part in "qkv"])
        fused[f"attn.out_proj.{kind}"] = state[f"attn.out.{kind}"]
    return fused


def feed_forward(width: int) -> nn.Sequential:
    """Build two linears with QuickGELU and a hidden width of four times `width`."""
    from transformers.activations import QuickGELUActivation

    return nn.Sequential(nn.Linear(width, 4 * width), QuickGELUActivation(), nn.Linear(4 * width, width))


def heads_of(width: int) -> int:
    """Return CLIP's number of attention heads, one per 64 channels."""
    return max(1, width // 64)


class CrossAttention(nn.Module):
    """Cross-attention of queries [B, K, E] to context [B, N, E]; q, k and v have no bias."""

    def __init__(self, width: int):
        super().__init__()
        self.num_heads = heads_of(width)
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Attend from `x` [B, K, E] to `context` [B, N, E], giving [B, K, E]."""
        parts = (self.q(x), self.k(context), self.v(context))
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
