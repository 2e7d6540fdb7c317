"""Classification heads.

Shapes: B clips, T frames, N patches, D tower width, E embedding, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipvid import InputError
from clipvid.layers.attention import CrossAttention, feed_forward
from clipvid.registry import Registry

CLASSES_AT_ONCE = 1024  # whose prompts are encoded together; the features of all would need gigabytes


@dataclass(frozen=True)
class TextHeadConfig:
    """Options of the text head, the cosine with text features of the classes.

    Attributes:
        prompt_layers: Decoder layers of video-specific prompts (X-CLIP, ILA), 0 for none.
        train_prompts: If False, video-specific prompts keep their first weights, as in the code of ILA's authors.
    """

    prompt_layers: int = 0
    train_prompts: bool = True

    def __post_init__(self) -> None:
        if self.prompt_layers < 0:
            raise InputError(f"head text: prompt_layers={self.prompt_layers} must be at least 0")


@dataclass(frozen=True)
class LinearHeadConfig:
    """Options of the linear head: L2 norm, LayerNorm, dropout, linear (ILA on Something-Something).

    Attributes:
        num_classes: Number of classes K. By default the number of labels.
        dropout: Probability, in [0, 1). ILA's authors use 0.5.
    """

    num_classes: int | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _check_classes("linear", self.num_classes)
        if not 0 <= self.dropout < 1:
            raise InputError(f"head linear: dropout={self.dropout} must be in [0, 1)")


@dataclass(frozen=True)
class CosineHeadConfig:
    """Options of the cosine head, the cosine with a learned vector of each class (MoTE).

    Attributes:
        num_classes: Number of classes K. By default the number of labels.
    """

    num_classes: int | None = None

    def __post_init__(self) -> None:
        _check_classes("cosine", self.num_classes)


@dataclass(frozen=True)
class ClassTokenHeadConfig:
    """Options of the class token head: LayerNorm, dropout and linear on the mean class token (ST-Adapter).

    Attributes:
        num_classes: Number of classes K. By default the number of labels.
        dropout: Probability, in [0, 1).
    """

    num_classes: int | None = None
    dropout: float = 0.5

    def __post_init__(self) -> None:
        _check_classes("class_token", self.num_classes)
        if not 0 <= self.dropout < 1:
            raise InputError(f"head class_token: dropout={self.dropout} must be in [0, 1)")


def _check_classes(kind: str, num_classes: int | None) -> None:
    if num_classes is not None and num_classes < 1:
        raise InputError(f"head {kind}: num_classes={num_classes} must be at least 1, or unset")


class Head(nn.Module):
    """Base class of classification heads. A subclass sets the class attributes and implements `forward`.

    Attributes:
        needs_text: If True, the head reads text features of the classes. Otherwise its number of classes is fixed.
        needs_prefix: If True, the patch tokens that the head gets have the prefix tokens of each frame in front.
        is_trained: True if all weights come from a trained model.
        papers: Citations with links, listed on the card of a model with this head.
    """

    Config: ClassVar[type] = TextHeadConfig
    needs_text: ClassVar[bool] = True
    needs_prefix: ClassVar[bool] = False
    papers: ClassVar[tuple[str, ...]] = ()
    is_trained = False

    def __init__(self, config: Any, width: int, embed_dim: int, num_classes: int | None):
        super().__init__()

    @property
    def num_classes(self) -> int | None:
        """Number of classes K of a head without text, otherwise None."""
        return None

    @property
    def needs_patches(self) -> bool:
        """True if the head reads patch tokens."""
        return True

    def forward(self, video: Tensor, patch_tokens: Tensor, text: Tensor | None) -> Tensor:
        """Return logits, or cosines for a head that needs text, [B, K].

        Args:
            video: Video features [B, E].
            patch_tokens: [B, T, N, D] of the last block, or [B, T, P+N, D] with `needs_prefix`.
            text: Text features of the classes [K, E], or None for a head without text.
        """
        raise NotImplementedError


class PromptDecoderLayer(nn.Module):
    """Decoder layer in which text features [B, K, E] attend to the video [B, N, E]."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.cross_attn = CrossAttention(width)
        self.mlp = feed_forward(width)

    def forward(self, text: Tensor, video: Tensor) -> Tensor:
        """Return text features [B, K, E]."""
        text = text + self.cross_attn(self.norm1(text), video)
        return text + self.mlp(self.norm3(text))


class VideoSpecificPrompts(nn.Module):
    """Text features conditioned on the clip, `text + alpha * decoder(text, patches)`."""

    def __init__(self, width: int, embed_dim: int, layers: int):
        super().__init__()
        self.visual_ln = nn.LayerNorm(width)
        self.visual_proj = nn.Linear(width, embed_dim, bias=False)
        self.norm = nn.LayerNorm(embed_dim)
        self.layers = nn.ModuleList(PromptDecoderLayer(embed_dim) for _ in range(layers))
        self.alpha = nn.Parameter(torch.full((embed_dim,), 0.1))

    def forward(self, text: Tensor, patch_tokens: Tensor) -> Tensor:
        """Return prompts [B, K, E] of text features [K, E] and patch tokens [B, T, N, D]."""
        video = self.norm(self.visual_proj(self.visual_ln(patch_tokens)).mean(dim=1))
        decoded = text.expand(video.shape[0], -1, -1)  # the length of a tensor would fix the batch in an export
        for layer in self.layers:
            decoded = layer(decoded, video)
        return text + self.alpha * decoded


def mean_direction(features: Tensor) -> Tensor:
    """Return the mean direction [K, E] of the features [K, templates, E] of each class's prompts, at their mean length.

    One prompt is returned as it is.
    """
    if features.shape[1] == 1:
        return features[:, 0]
    direction = F.normalize(F.normalize(features, dim=-1).mean(dim=1), dim=-1)
    return direction * features.norm(dim=-1).mean(dim=1, keepdim=True)


class TextHead(Head):
    """Head with cosine logits against text features."""

    def __init__(self, config: TextHeadConfig, width: int, embed_dim: int, num_classes: int | None):
        super().__init__(config, width, embed_dim, num_classes)
        layers = config.prompt_layers
        self.video_prompts = VideoSpecificPrompts(width, embed_dim, layers) if layers else None
        if self.video_prompts is not None and not config.train_prompts:
            self.video_prompts.requires_grad_(False)

    @property
    def needs_patches(self) -> bool:
        """True with video-specific prompts."""
        return self.video_prompts is not None

    def forward(self, video: Tensor, patch_tokens: Tensor, text: Tensor | None) -> Tensor:
        """Return the cosines [B, K] of video features [B, E] with text features [K, E], see `Head`."""
        assert text is not None
        prompts = text[None] if self.video_prompts is None else self.video_prompts(text, patch_tokens)
        return torch.einsum(
            "be,bke->bk", F.normalize(video, dim=-1), F.normalize(prompts, dim=-1).expand(video.shape[0], -1, -1)
        )


class LinearHead(Head):
    """Head with a fixed number of classes and without text."""

    Config = LinearHeadConfig
    needs_text = False

    def __init__(self, config: LinearHeadConfig, width: int, embed_dim: int, num_classes: int | None):
        super().__init__(config, width, embed_dim, num_classes)
        classes = _number_of_classes("linear", config.num_classes, num_classes)
        self.norm = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.linear = nn.Linear(embed_dim, classes)

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.linear.out_features

    @property
    def needs_patches(self) -> bool:
        """False: the head reads pooled features."""
        return False

    def forward(self, video: Tensor, patch_tokens: Tensor, text: Tensor | None) -> Tensor:
        """Return logits [B, K] of video features [B, E]."""
        return self.linear(self.dropout(self.norm(F.normalize(video, dim=-1))))


class CosineHead(Head):
    """Head with cosine logits against one learned vector per class, without text."""

    Config = CosineHeadConfig
    needs_text = False
    papers = ("MoTE: Zhu et al., NeurIPS 2024, https://arxiv.org/abs/2410.10589",)

    def __init__(self, config: CosineHeadConfig, width: int, embed_dim: int, num_classes: int | None):
        super().__init__(config, width, embed_dim, num_classes)
        classes = _number_of_classes("cosine", config.num_classes, num_classes)
        self.weight = nn.Parameter(torch.randn(classes, embed_dim) / embed_dim**0.5)
        self.logit_scale = nn.Parameter(torch.tensor(100.0).log())

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.weight)

    @property
    def needs_patches(self) -> bool:
        """False: the head reads pooled features."""
        return False

    def forward(self, video: Tensor, patch_tokens: Tensor, text: Tensor | None) -> Tensor:
        """Return logits [B, K] of video features [B, E]."""
        return self.logit_scale.exp() * F.normalize(video, dim=-1) @ F.normalize(self.weight, dim=-1).T


class ClassTokenHead(Head):
    """Head that reads the class tokens of the last block instead of the pooled features.

    CLIP's final norm and projection are not used: the head has a LayerNorm, applied to the mean over frames.
    """

    Config = ClassTokenHeadConfig
    needs_text = False
    needs_prefix = True
    papers = ("Pan et al., NeurIPS 2022, https://arxiv.org/abs/2206.13559",)

    def __init__(self, config: ClassTokenHeadConfig, width: int, embed_dim: int, num_classes: int | None):
        super().__init__(config, width, embed_dim, num_classes)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)
        self.linear = nn.Linear(width, _number_of_classes("class_token", config.num_classes, num_classes))

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.linear.out_features

    def forward(self, video: Tensor, patch_tokens: Tensor, text: Tensor | None) -> Tensor:
        """Return logits [B, K] of the tokens [B, T, P+N, D], whose first one is the class token."""
        return self.linear(self.dropout(self.norm(patch_tokens[:, :, 0].mean(dim=1))))


def _number_of_classes(kind: str, configured: int | None, labels: int | None) -> int:
    classes = configured or labels
    if not classes:
        raise InputError(
            f"a {kind} head needs a number of classes: pass labels=[...] or head={{name: {kind}, num_classes: K}}"
        )
    return classes


HEADS = Registry(
    "head",
    {"text": TextHead, "linear": LinearHead, "cosine": CosineHead, "class_token": ClassTokenHead},
    group="clipvid.heads",
)
