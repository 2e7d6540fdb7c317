"""Copy of a model with a linear head that was trained on its video features.

Shapes: N clips, E embedding, K classes.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clipvid.model.heads import LinearHead, LinearHeadConfig
from clipvid.model.video_clip import VideoCLIP


def linear_head_inputs(features: Tensor) -> Tensor:
    """Return what the linear map of a new linear head gets for video features: float32 [N, E]."""
    return F.layer_norm(F.normalize(features.float(), dim=-1), features.shape[-1:])


def with_linear_head(model: VideoCLIP, weight: Tensor, bias: Tensor, labels: Sequence[str]) -> VideoCLIP:
    """Return a copy of a model with a linear head for one class per clip, in evaluation mode.

    The copy shares the weights of all other parts. With LoRA it does not: the updates are merged into its weights.

    Args:
        model: Model with any head.
        weight: Weights [K, E] for inputs of `linear_head_inputs`.
        bias: Biases [K].
        labels: K class names.
    """
    has_lora = hasattr(model, "peft_config")
    shared: list[Any] = [model.text.tokenizer]
    shared += [] if has_lora else [*model.parameters(), *model.buffers()]
    result: VideoCLIP = copy.deepcopy(model, {id(item): item for item in shared})
    if has_lora:
        result.merge_lora()
    tuning = result.config.parts.tuning.without("text").without("coop")
    result.context = result.label_tokens = result.label_features = None
    result.label_bias = None
    tune = tuning.record() or ["head"]
    result.config = dataclasses.replace(result.config, head="linear", tune=tune, multi_label=None)
    head = LinearHead(LinearHeadConfig(), result.backbone.vision.width, weight.shape[1], len(labels))
    with torch.no_grad():
        head.linear.weight.copy_(weight)
        head.linear.bias.copy_(bias)
    result.head = head.to(next(result.parameters()))
    result.set_labels(labels)
    return result.eval()
