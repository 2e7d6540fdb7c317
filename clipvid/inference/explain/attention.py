"""Relevance from attention: weighted by its gradient (Chefer et al., ICCV 2021), and plain rollout.

Relevance r starts at the tokens that the head reads and moves down through the blocks. Residual connections and MLPs
keep it at its token:

    r <- r + r A',    A' = mean over heads of (A * dy/dA)+

for target y and attention weights A. Known from the paper [paper], https://arxiv.org/abs/2103.15679: the rule of a
block and the start at the class token. Our choice [construction]: relevance starts at all tokens in proportion to
|x| |dy/dx|, so that it covers class tokens, mean and attention pooling. A' is divided by its mean sum per frame and
block, so that the scale of the logits does not count. An adapter adds relevance at the tokens x that it reads, in
proportion to |x| |dy/dx| through the adapter. The amount is the sum of (u dy/du)+ over its updates u, divided like A'.

Plain rollout (Abnar and Zuidema, ACL 2020, https://arxiv.org/abs/2005.00928) has the mean attention of the heads
instead. Adapters then keep relevance at its token.

Shapes: B = 1 clip, T frames, P prefix tokens, N = H x W patches, M context tokens, L = P + N + M, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clipvid.inference.explain.recording import AdapterRecord, BlockRecord, Record, record
from clipvid.inference.explain.target import Target
from clipvid.model.video_clip import VideoCLIP
from clipvid.registry import check_option


@dataclass(frozen=True)
class GradientAttention:
    """Attention weighted by its gradient, from one forward and one backward pass.

    Attributes:
        adapters: Rule for adapters, `gradient` or `identity` (they keep relevance at its token).
    """

    adapters: Literal["gradient", "identity"] = "gradient"

    def __post_init__(self) -> None:
        check_option("attention", "adapters", self.adapters, ("gradient", "identity"))

    def relevance(self, model: VideoCLIP, clip: Tensor, target: Target) -> Tensor:
        """Return the relevance [T, H, W] of a normalized clip [1, T, 3, S, S]."""
        graph = _Graph(model, clip, target)
        matrices = [graph.weighted(attention) for attention in graph.seen.attentions()]
        scale = torch.stack([matrix.sum() for matrix in matrices]).mean() / clip.shape[1]
        scale = scale.clamp(min=torch.finfo(scale.dtype).tiny)
        relevance = graph.start()
        for block, matrix in zip(reversed(graph.seen.blocks), reversed(matrices), strict=True):
            relevance = self._through(graph, block, matrix / scale, scale, relevance)
        return _patches(model, relevance)

    def _through(self, graph: _Graph, block: BlockRecord, matrix: Tensor, scale: Tensor, relevance: Tensor) -> Tensor:
        """Return the relevance [T, P+N] at the input of a block, from that at its output."""
        adapters = list(reversed(block.adapters.values()))
        for each in adapters:
            if each.adapter.place == "after_attention":
                relevance = relevance + self._added(graph, each, scale)
        relevance, of_context = _attend(relevance, matrix)
        for each in adapters:
            if each.adapter.place == "before_attention":
                relevance = relevance + self._added(graph, each, scale)
                if (
                    each.output.context is not None
                ):  # dropped after the block: its relevance goes to the adapter's input
                    relevance = relevance + of_context.sum() * graph.shares(each.tokens)
        return relevance

    def _added(self, graph: _Graph, each: AdapterRecord, scale: Tensor) -> Tensor | float:
        """Return the relevance [T, P+N] that an adapter adds at its input."""
        update = each.output.update
        if self.adapters == "identity" or update is None:
            return 0.0
        effect = (update.detach().float() * graph.gradient(update)).sum(dim=-1).clamp(min=0).sum()
        return effect / scale * graph.shares(each.tokens)


@dataclass(frozen=True)
class Rollout:
    """Plain attention rollout, a baseline. It does not depend on the class, except for its start at the frames."""

    def relevance(self, model: VideoCLIP, clip: Tensor, target: Target) -> Tensor:
        """Return the relevance [T, H, W] of a normalized clip [1, T, 3, S, S]."""
        graph = _Graph(model, clip, target)
        relevance = graph.start()
        for attention in reversed(graph.seen.attentions()):
            relevance = _attend(relevance, attention.detach().float().mean(dim=1))[0] / 2
        return _patches(model, relevance)


class _Graph:
    """Recorded pass of a clip [1, T, 3, S, S] and the gradients of the target's score."""

    def __init__(self, model: VideoCLIP, clip: Tensor, target: Target):
        with torch.enable_grad(), record(model) as seen:
            logits = model(clip.detach().clone().requires_grad_(), normalized=True).logits
            score = target.score(logits.float()).sum()
        self.seen = seen
        watched = [_tokens(seen), *seen.attentions()]
        for each in (each for block in seen.blocks for each in block.adapters.values()):
            watched += [part for part in (each.tokens, each.output.update) if part is not None]
        watched = [part for part in watched if part.requires_grad]
        gradients = torch.autograd.grad(score, watched, allow_unused=True)
        self._gradients = {id(part): gradient for part, gradient in zip(watched, gradients, strict=True)}

    def gradient(self, part: Tensor) -> Tensor:
        """Return the gradient of a recorded tensor in float32; zeros if the score does not depend on it."""
        gradient = self._gradients.get(id(part))
        return torch.zeros_like(part, dtype=torch.float32) if gradient is None else gradient.float()

    def weighted(self, attention: Tensor) -> Tensor:
        """Return the mean over heads of (A * dy/dA)+ of weights A [T, heads, L, L]."""
        return (attention.detach().float() * self.gradient(attention)).clamp(min=0).mean(dim=1)

    def shares(self, tokens: Tensor) -> Tensor:
        """Return the share [T, P+N] of each token [1, T, P+N, D] in the sum of |x| |dy/dx|."""
        size = tokens.detach().float().norm(dim=-1)[0] * self.gradient(tokens).norm(dim=-1)[0]
        return size / size.sum().clamp(min=torch.finfo(size.dtype).tiny)

    def start(self) -> Tensor:
        """Return the relevance [T, P+N] at the output of the last block, 1 per frame on average."""
        shares = self.shares(_tokens(self.seen))
        return shares * len(shares)


def _tokens(seen: Record) -> Tensor:
    assert seen.tokens is not None
    return seen.tokens


def _attend(relevance: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Move relevance [T, P+N] through attention [T, L, L]. Return it at P+N tokens, and at the M context tokens."""
    length = relevance.shape[1]
    whole = F.pad(relevance, (0, matrix.shape[-1] - length))
    whole = whole + (whole.unsqueeze(1) @ matrix).squeeze(1)
    return whole[:, :length], whole[:, length:]


def _patches(model: VideoCLIP, relevance: Tensor) -> Tensor:
    """Return the relevance [T, H, W] of the patches in [T, P+N]."""
    tower = model.encoder.tower
    return relevance[:, tower.num_prefix :].unflatten(1, tower.grid)
