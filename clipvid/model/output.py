"""Output of `VideoCLIP`."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from clipvid.model.encoder import Traces


class VideoCLIPOutput(NamedTuple):
    """Output of `VideoCLIP.forward`.

    Attributes:
        logits: [B, K].
        losses: Scalar auxiliary losses by name, to be added to the objective.
        video_features: [B, E], pooled, not normalized.
        frame_features: [B, T, E].
        patch_tokens: [B, T, N, D], with N = 0 without `patches`.
        traces: Traces of the adapters, empty unless requested.
    """

    logits: Tensor
    losses: dict[str, Tensor]
    video_features: Tensor
    frame_features: Tensor
    patch_tokens: Tensor
    traces: Traces
