"""Grad-CAM on patch tokens (Selvaraju et al., ICCV 2017, https://arxiv.org/abs/1610.02391).

Shapes: T frames, P prefix tokens, N = H x W patches, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clipvid.inference.explain.recording import record
from clipvid.inference.explain.target import Target
from clipvid.model.video_clip import VideoCLIP


@dataclass(frozen=True)
class GradCAM:
    """Channels of the tokens that the last attention reads, weighted by their mean gradient, where the sum is positive.

    For towers with the norm before the attention, these are its normed tokens, as is usual for image transformers. The
    mean gradient is over all patches of all frames, as for 3-D convolutions. One forward and one backward pass.
    """

    def relevance(self, model: VideoCLIP, clip: Tensor, target: Target) -> Tensor:
        """Return the relevance [T, H, W] of a normalized clip [1, T, 3, S, S]."""
        with torch.enable_grad(), record(model) as seen:
            logits = model(clip.detach().clone().requires_grad_(), normalized=True).logits
            score = target.score(logits.float()).sum()
        tokens = seen.blocks[-1].attention_input
        assert tokens is not None
        (gradient,) = torch.autograd.grad(score, [tokens])
        tower = model.encoder.tower
        patches = slice(tower.num_prefix, tower.num_prefix + tower.grid[0] * tower.grid[1])
        values, slopes = (part[:, patches].detach().float() for part in (tokens, gradient))
        weights = slopes.mean(dim=(0, 1))
        return (values @ weights).clamp(min=0).unflatten(1, tower.grid)
