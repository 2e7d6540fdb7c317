"""Methods that find where an answer comes from.

A method is a frozen dataclass of its options with `relevance(model, clip, target)`. To add one, write a file in this
folder and add a line to `METHODS`.
"""

from __future__ import annotations

from clipvid.inference.explain.attention import GradientAttention, Rollout
from clipvid.inference.explain.grad_cam import GradCAM
from clipvid.inference.explain.occlusion import Occlusion
from clipvid.registry import Registry

METHODS = Registry(
    "explanation method",
    {"attention": GradientAttention, "grad_cam": GradCAM, "occlusion": Occlusion, "rollout": Rollout},
    group="clipvid.explanations",
)
