"""Checkpoints of ILA's authors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from clipvid import InputError
from clipvid.convert.openai_names import (
    BLOCK,
    IMAGENET_PIXELS,
    assemble,
    count_layers,
    read_state,
    rename_head,
    trained_frames,
)
from clipvid.model.video_clip import VideoCLIP

_CONVS = {
    "k400": {
        "0.depthwise_conv.0": 0,
        "0.depthwise_conv.1": 1,
        "0.pointwise_conv.0": 3,
        "0.pointwise_conv.1": 4,
        "1": 6,
        "2": 7,
    },
    "ssv2": {"0": 0, "1": 1, "3": 3, "4": 4},
}
_POINTS = {"0": "conv1", "1": "norm1", "4": "conv2", "5": "norm2", "10": "reduce", "12": "predict"}


def from_ila(
    state_dict: Mapping[str, Any], num_frames: int | None = None, norm: str = "batch", eval_batch_stats: bool = False
) -> VideoCLIP:
    """Build a `VideoCLIP` equal to the authors' ILA model. Its pixel statistics are theirs, those of ImageNet.

    Args:
        state_dict: State dict of the released checkpoint (or the whole checkpoint, with it under `model`). It contains
            CLIP under OpenAI's names, and ILA's tensors. All sizes are read from the tensors; attention heads are 64
            wide.
        num_frames: Number of frames T in its training, to be checked.
        norm: Normalization, see `ILAConfig`.
        eval_batch_stats: Use batch statistics in evaluation, see `ILAConfig`.

    Raises:
        InputError: The file is not an ILA checkpoint, the frame count differs, or tensors have no place in the model.
            The message names them.
    """
    state = read_state(state_dict)
    if f"{BLOCK}0.message_fc.weight" not in state:
        raise InputError(f"not an ILA checkpoint: no tensor {BLOCK}0.message_fc.weight among {len(state)} entries")
    if f"{BLOCK}0.message_attn.conv.weight" not in state:
        raise InputError(f"not an ILA checkpoint: no tensor {BLOCK}0.message_attn.conv.weight")
    variant = "k400" if any("depthwise_conv" in key for key in state) else "ssv2"
    hidden = state[f"{BLOCK}0.message_attn.conv.weight"].shape[0] * 2
    head: dict[str, Any] = {"name": "text", "prompt_layers": count_layers(state, "prompts_generator.decoder.")}
    if "mit.classify_head.2.weight" in state:
        head = {"name": "linear", "num_classes": len(state["mit.classify_head.2.weight"]), "dropout": 0.5}
    options = {"variant": variant, "norm": norm, "eval_batch_stats": eval_batch_stats}
    fields = {
        "adapter": {"name": "ila", "hidden": hidden, **options},
        "num_frames": trained_frames(state, num_frames),
        "pooling": {"name": "mit", "layers": count_layers(state, "mit.resblocks.")},
        "head": head,
        **IMAGENET_PIXELS,
    }
    # The radius of the jitter is not in the authors' file and has its initial value.
    return assemble("ila", state, partial(_rename, variant=variant), fields, buffers=(".jitter",))


def _rename(key: str, value: Tensor, variant: str) -> dict[str, Tensor]:
    block = re.fullmatch(r"visual\.transformer\.resblocks\.(\d+)\.(.+)", key)
    if not block:
        return rename_head(key, value)
    name = _adapter_name(block[2], variant)
    if name == "temporal_conv.weight":
        value = value.flatten(2)
    return {f"encoder.layers.{block[1]}.adapters.ila.{name}": value}


def _adapter_name(name: str, variant: str) -> str:
    name = name.replace("message_attn.conv.", "temporal_conv.").replace("message_attn.fc.", "interactive_fc.")
    layer = re.fullmatch(r"message_attn\.(interactive_block|prediction_block)\.(.+)\.(\w+)", name)
    if not layer:
        return name
    if layer[1] == "interactive_block":
        return f"interactive_block.{_CONVS[variant].get(layer[2], layer[2])}.{layer[3]}"
    return f"point_predictor.{_POINTS.get(layer[2], layer[2])}.{layer[3]}"
