"""open_clip's native towers in parts: the image tower before, in and after its blocks, and the text tower.

Shapes: M images, P prefix tokens, N = H x W patches, D width, E embedding, K texts, L text length.
"""

from __future__ import annotations

import warnings
from typing import Any

import open_clip
import torch
from open_clip.transformer import CustomResidualAttentionBlock, ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from clipvid import InputError, RunError
from clipvid.layers.attention import SelfAttention, fuse_projection
from clipvid.layers.parts import apply_in_parts

_TEXTS_AT_ONCE = 128
NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 1, "heads": 1, "layers": 1}


class Block(nn.Module):
    """Transformer block of a native open_clip tower, in halves. Both return an update of the stream."""

    def __init__(self, source: ResidualAttentionBlock | CustomResidualAttentionBlock):
        super().__init__()
        self.ln_1, self.ls_1 = source.ln_1, source.ls_1
        fused = isinstance(source.attn, nn.MultiheadAttention)
        self.attn: Any = SelfAttention.from_fused(source.attn) if fused else source.attn
        self.ln_attn = getattr(source, "ln_attn", nn.Identity())
        self.ln_2, self.mlp, self.ls_2 = source.ln_2, source.mlp, source.ls_2

    def attention(self, x: Tensor) -> Tensor:
        """Return the update [M, P+N, D] of tokens [M, P+N, D]."""
        return self.ls_1(self.ln_attn(self.attn(self.ln_1(x))))

    def feed_forward(self, x: Tensor) -> Tensor:
        """Return the update [M, P+N, D] of tokens [M, P+N, D]."""
        return self.ls_2(self.mlp(self.ln_2(x)))

    def open_clip_state(self) -> dict[str, Tensor]:
        """Return weights under open_clip's names, with fused attention."""
        return fuse_projection(self.state_dict())


class VisionTower(nn.Module):
    """Parts of a native open_clip ViT outside its blocks: embedding and pooling head."""

    num_prefix = 1
    blocks_prefix = "transformer.resblocks"

    visual: Any

    def __init__(self, visual: VisionTransformer):
        super().__init__()
        self.visual = visual
        self.width: int = visual.transformer.width
        self.embed_dim: int = visual.output_dim
        self.grid: tuple[int, int] = visual.grid_size
        size = visual.image_size
        self.image_shape: tuple[int, int] = (size, size) if isinstance(size, int) else tuple(size)

    @property
    def pools_prefix(self) -> bool:
        """True if `head` reads only the prefix tokens."""
        return self.visual.attn_pool is None and self.visual.pool_type == "tok"

    def embed(self, images: Tensor) -> Tensor:
        """Embed normalized images [M, 3, S, S] as tokens [M, P+N, D]."""
        return self.visual._embeds(images)

    def head(self, tokens: Tensor) -> Tensor:
        """Pool tokens of the last block [M, P+N, D] to image features [M, E], not normalized."""
        pooled, _ = self.visual._pool(tokens)
        return pooled if self.visual.proj is None else pooled @ self.visual.proj

    def ends(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Return the parameters before and after the blocks."""
        return split_parameters(self.visual, ("ln_post", "proj", "attn_pool"))


class MissingTokenizer:
    """Placeholder for a tokenizer that could not be loaded. It raises an error when called.

    Args:
        name: Name of the backbone.
        reason: Reason of the failure.
    """

    def __init__(self, name: str, reason: str):
        self.name, self.reason = name, reason

    def __call__(self, texts: list[str]) -> Tensor:
        """Raise RunError."""
        raise RunError(
            f"backbone {self.name}: its tokenizer could not be loaded ({self.reason}), and class names need it. "
            "Put tokenizer.json and tokenizer_config.json into the folder of the weights, fill the cache of "
            "the Hub, or use head=linear, which needs no text"
        )


class TextTower(nn.Module):
    """CLIP text tower with its tokenizer and the learned scale (and bias) of the logits."""

    clip: Any
    tokenizer: Any

    def __init__(self, clip: nn.Module, tokenizer: Any):
        super().__init__()
        self.clip = clip
        self.tokenizer = tokenizer

    @property
    def present(self) -> bool:
        """False for a checkpoint without text tower, see `NO_TEXT`."""
        return getattr(self.clip, "vocab_size", None) != NO_TEXT["vocab_size"]

    @property
    def logit_scale(self) -> Tensor:
        """Scalar factor of the cosines."""
        return self.clip.logit_scale.exp()

    @property
    def logit_bias(self) -> Tensor | float:
        """Scalar added to the logits (SigLIP), otherwise 0."""
        bias = getattr(self.clip, "logit_bias", None)
        return 0.0 if bias is None else bias

    @property
    def transformer(self) -> Any:
        """Module with open_clip's native text blocks and token embedding.

        Raises:
            InputError: The tower belongs to another library (`hf_model_name` in its config).
        """
        tower = getattr(self.clip, "text", self.clip)
        if not hasattr(tower, "token_embedding") or not hasattr(tower.transformer, "resblocks"):
            raise InputError(
                f"the text tower is a {type(tower).__name__}, which can only be frozen or trained whole; LoRA and "
                "context tokens need a native text tower of open_clip"
            )
        return tower

    def tokenize(self, texts: list[str]) -> Tensor:
        """Return token ids int64 [K, L] of K texts. Warn about texts that are too long, with the words that are cut."""
        tokens: Tensor = self.tokenizer(texts)
        if not self.present:  # the encoder refuses texts in this case
            return tokens
        full = (tokens[:, -1] != self._pad_token()).nonzero().flatten().tolist()
        cut = {texts[index]: words for index in full if (words := self._words_cut(texts[index], tokens.shape[1]))}
        if cut:
            shown = "; ".join(f"{_shortened(text)!r} loses {_shortened(words)!r}" for text, words in [*cut.items()][:3])
            more = f" and {len(cut) - 3} more" if len(cut) > 3 else ""
            warnings.warn(
                f"{len(cut)} of {len(texts)} texts are longer than the {tokens.shape[1]} tokens of the text tower and "
                f"are cut: {shown}{more}",
                stacklevel=3,
            )
        return tokens

    def _pad_token(self) -> int:
        inner = getattr(self.tokenizer, "tokenizer", None)
        return getattr(inner, "pad_token_id", None) or 0

    def _words_cut(self, text: str, length: int) -> str:
        """Return the end of a text that does not fit into `length` tokens, from the first word that is cut."""
        if isinstance(self.tokenizer, open_clip.SimpleTokenizer):
            ids, room, decode = self.tokenizer.encode(text), length - 2, self.tokenizer.decode
        elif isinstance(self.tokenizer, open_clip.tokenizer.HFTokenizer):
            inner: Any = self.tokenizer.tokenizer
            ids = inner(self.tokenizer.clean_fn(text), add_special_tokens=False)["input_ids"]
            room, decode = length - inner.num_special_tokens_to_add(), inner.decode
        else:
            return ""
        if len(ids) <= room:
            return ""
        whole, kept = decode(ids).strip(), decode(ids[:room]).strip()
        rest = whole[len(kept) :]
        return rest.strip() if rest.startswith(" ") else (kept.rsplit(" ", 1)[-1] + rest).strip()

    def count_tokens(self, text: str) -> int:
        """Count the tokens of a text, without start and end tokens.

        Raises:
            InputError: The tokenizer has no start token.
        """
        if not isinstance(self.tokenizer, open_clip.SimpleTokenizer):
            raise InputError(
                f"context tokens follow the start token of a text; a {type(self.tokenizer).__name__} has none"
            )
        return len(self.tokenizer.encode(text))

    def forward(self, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        """Return text features [K, E], not normalized, of token ids [K, L].

        Without gradients, long lists are encoded in parts, so that memory does not grow with the list.

        Args:
            tokens: Token ids.
            context: [C, width], replaces the embeddings of the C tokens after the first.
        """
        if not self.present:
            raise RunError("this model has no text tower (it was converted from a checkpoint without one)")
        trained = (context is not None and context.requires_grad) or any(p.requires_grad for p in self.parameters())
        if torch.is_grad_enabled() and trained:
            return self._encode(tokens, context)
        return apply_in_parts(lambda part: self._encode(part, context), tokens, _TEXTS_AT_ONCE)

    def _encode(self, tokens: Tensor, context: Tensor | None) -> Tensor:
        if context is None:
            return self.clip.encode_text(tokens, normalize=False)

        def put(module: nn.Module, args: Any, embedded: Tensor) -> Tensor:
            vectors = context.to(embedded.dtype).expand(len(embedded), -1, -1)
            return torch.cat([embedded[:, :1], vectors, embedded[:, 1 + len(context) :]], dim=1)

        with self.transformer.token_embedding.register_forward_hook(put):
            return self.clip.encode_text(tokens, normalize=False)

    def ends(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Return the parameters before and after the blocks."""
        after = ("ln_final", "text_projection", "logit_scale", "logit_bias")
        return split_parameters(self.clip, (*after, *(f"text.{name}" for name in after)), skip=".resblocks.")


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:28]}...{text[-28:]}"


def split_parameters(
    module: nn.Module, last: tuple[str, ...], skip: str | None = None
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split parameters by names that begin with one of `last`. Omit names that contain `skip`."""
    named = [(name, value) for name, value in module.named_parameters() if skip is None or skip not in name]
    before = [value for name, value in named if not name.startswith(last)]
    return before, [value for name, value in named if name.startswith(last)]
