"""Learned context tokens of the text tower (CoOp)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from clipvid import InputError
from clipvid.model.prompts import TEMPLATES, class_prompts

if TYPE_CHECKING:
    from clipvid.backbone import TextTower

_PLACEHOLDER = "X"  # a single token at any position


@dataclass(frozen=True)
class ContextConfig:
    """Learned vectors that replace the words before a class name (CoOp, https://arxiv.org/abs/2109.01134).

    Attributes:
        tokens: Number of vectors, shared by all classes.
        init: Words that the first vectors start as. The rest are random.
    """

    papers: ClassVar[tuple[str, ...]] = ("Zhou et al., IJCV 2022, https://arxiv.org/abs/2109.01134",)

    tokens: int = 4
    init: str = "a video of a"

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise InputError(f"coop: tokens={self.tokens} must be at least 1")


class ContextTokens(nn.Module):
    """Learned context of a text tower. `vectors` [C, width] are between the start token and the class name."""

    def __init__(self, config: ContextConfig, text: TextTower):
        super().__init__()
        embedding, length = text.transformer.token_embedding.weight, text.transformer.context_length
        if config.tokens > length - 3:  # leaves room for start, end and a name
            raise InputError(f"coop: tokens={config.tokens}; a text of this tower has {length} tokens in total")
        self.vectors = nn.Parameter(0.02 * torch.randn(config.tokens, embedding.shape[1]))
        count = text.count_tokens(config.init)
        if count > config.tokens:
            raise InputError(f"coop: init={config.init!r} has {count} tokens, more than tokens={config.tokens}")
        with torch.no_grad():
            self.vectors[:count] = embedding[text.tokenize([config.init])[0, 1 : 1 + count]]

    def tokenize(self, text: TextTower, names: list[str]) -> Tensor:
        """Return token ids [K, 1, L] of K class names, with placeholders for the context.

        Raises:
            InputError: A name is too long next to the context.
        """
        prompts = [
            " ".join([_PLACEHOLDER] * len(self.vectors) + [f"{name.replace('_', ' ').strip()}."]) for name in names
        ]
        tokens = text.tokenize(prompts)
        room = tokens.shape[1] - 2
        long = [name for name, prompt in zip(names, prompts, strict=True) if text.count_tokens(prompt) > room]
        if long:
            raise InputError(
                f"coop: {len(self.vectors)} context tokens leave no room for {', '.join(long[:3])} in the text tower's "
                f"{room} tokens: choose fewer"
            )
        return tokens[:, None]


def label_prompts(
    text: TextTower, labels: list[str], templates: tuple[str, ...], context: ContextTokens | None
) -> Tensor:
    """Return token ids [K, templates, L] of K class names, in templates or after a learned context.

    Raises:
        InputError: There are both templates and a context, or a name is too long next to the context.
    """
    if context is None:
        prompts = class_prompts(labels, templates)
        tokens = text.tokenize([prompt for of_class in prompts for prompt in of_class])
        return tokens.unflatten(0, (len(prompts), -1))
    if templates not in (TEMPLATES["none"], TEMPLATES["single"]):
        raise InputError(f"templates={list(templates)}: `coop` learns the context of a class name; remove `templates`")
    return context.tokenize(text, labels)
