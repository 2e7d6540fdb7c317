"""Checkpoints of MoTE: ActionCLIP's transformer over frames, with several experts in each MLP."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clipvid import InputError
from clipvid.convert.action_clip import assemble_over_time, two_states
from clipvid.convert.openai_names import require_frames
from clipvid.model.video_clip import VideoCLIP

_CLASSES = "spe_cls_feature"


def from_mote(checkpoint: Mapping[str, Any], num_frames: int | None = None) -> VideoCLIP:
    """Build a `VideoCLIP` equal to MoTE (https://arxiv.org/abs/2410.10589) on the classes of its training.

    The experts of a layer are merged by their weights, as in the authors' evaluation. The file has no text tower but
    the features of its classes, which become a `cosine` head. The authors' evaluation adds 1% of CLIP's own weights to
    the image tower; this model has the weights of the file.

    Args:
        checkpoint: The released checkpoint.
        num_frames: Number of frames T per clip, which the file does not contain. The released ones have 8.

    Raises:
        InputError: The file is not such a checkpoint, or tensors are missing or have no place in the model. The message
            lists them.
    """
    clip, fusion = two_states(checkpoint, "MoTE")
    if not any(".mlp.fc_up." in key for key in fusion):
        raise InputError("not a MoTE checkpoint: its transformer has no experts (mlp.fc_up)")
    if _CLASSES not in fusion or "logit_scale" not in clip:
        raise InputError(f"not a complete MoTE checkpoint: missing {_CLASSES} or logit_scale")
    merged = _merge_experts(fusion)
    classes, scale = merged.pop(_CLASSES), clip.pop("logit_scale")
    merged |= {"head.weight": classes, "head.logit_scale": scale}
    head = {"name": "cosine", "num_classes": len(classes)}
    return assemble_over_time("mote", clip, merged, require_frames("MoTE", num_frames), head)


def _merge_experts(fusion: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict with one MLP per layer, the mean of its experts under their softmax weights."""
    merged: dict[str, Tensor] = {}
    experts: dict[str, dict[int, Tensor]] = {}
    for key, value in fusion.items():
        part = re.fullmatch(r"(.+\.mlp\.)(fc_up|fc_dn)\.(\d+)\.(weight|bias)", key)
        if part:
            name = f"{part[1]}{'c_fc' if part[2] == 'fc_up' else 'c_proj'}.{part[4]}"
            experts.setdefault(name, {})[int(part[3])] = value
        elif not key.endswith(".mote_fusion_weight"):
            merged[key] = value
    for name, values in experts.items():
        weight_name = f"{name.split('.mlp.')[0]}.mlp.mote_fusion_weight"
        weights = fusion.get(weight_name)
        if weights is None or values.keys() != set(range(len(weights))):
            raise InputError(f"the experts of {name} do not fit {weight_name}")
        stacked = torch.stack([values[index].float() for index in range(len(weights))])
        merged[name] = torch.tensordot(weights.float().softmax(dim=0), stacked, dims=1)
    return merged
