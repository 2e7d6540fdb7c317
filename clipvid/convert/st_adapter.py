"""Checkpoints of ST-Adapter: CLIP's image tower with adapters and a linear classifier."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clipvid import InputError
from clipvid.convert.openai_names import assemble, read_state, require_frames
from clipvid.model.video_clip import VideoCLIP

_PLACES = {
    frozenset({"adapter_pre_attn"}): "before_attention",
    frozenset({"adapter_pre_mlp"}): "before_mlp",
    frozenset({"adapter_pre_attn", "adapter_pre_mlp"}): "both",
}
_LAYERS = {"fc1": "down", "conv": "conv", "fc2": "up"}
_ADAPTER = re.compile(
    r"(?:visual\.)?transformer\.resblocks\.(\d+)\.(adapter_pre_attn|adapter_pre_mlp)\.(fc1|conv|fc2)\.(weight|bias)"
)


def from_st_adapter(state_dict: Mapping[str, Any], num_frames: int | None = None) -> VideoCLIP:
    """Build a `VideoCLIP` equal to the authors' ST-Adapter (https://arxiv.org/abs/2206.13559).

    The classifier becomes a `class_token` head. The file has no projection, no text tower, and no word about the
    sampling of frames: evenly over the video on Something-Something v2, a dense window on Kinetics-400.

    Args:
        state_dict: State dict of the released checkpoint (or the whole checkpoint, with it under `model`).
        num_frames: Number of frames T per clip, which the file does not contain. The authors use 8, 16 and 32.

    Raises:
        InputError: The file is not an ST-Adapter checkpoint, or tensors are missing or have no place in the model. The
            message lists them.
    """
    state = read_state(state_dict)
    adapters = {key: match for key in state if (match := _ADAPTER.fullmatch(key))}
    if not adapters or "fc.weight" not in state:
        raise InputError(f"not an ST-Adapter checkpoint: no adapters or no fc.weight among {len(state)} entries")
    places = {int(match[1]): frozenset[str]() for match in adapters.values()}
    for match in adapters.values():
        places[int(match[1])] |= {match[2]}
    if len(set(places.values())) > 1:
        raise InputError("the checkpoint has adapters at different places in different blocks, which is not supported")
    place = _PLACES[next(iter(places.values()))]
    example = next((value for key, value in state.items() if ".conv.weight" in key and key in adapters), None)
    width = len(state["ln_post.weight"]) if "ln_post.weight" in state else 0
    if example is None or example.ndim != 5 or not width:
        raise InputError("not a complete ST-Adapter checkpoint: missing ln_post.weight or a convolution of an adapter")
    adapter = {"name": "st_adapter", "layers": sorted(places), "channels": len(example), "place": place}
    fields = {
        "adapter": adapter | {"kernel_size": list(example.shape[2:])},
        "num_frames": require_frames("ST-Adapter", num_frames),
        "head": {"name": "class_token", "num_classes": len(state["fc.weight"])},
    }
    tower = {key if key.startswith("fc.") else f"visual.{key}": value for key, value in state.items()}
    # The classifier reads unprojected tokens, and has the final norm: CLIP's projection does not matter.
    tower |= {"visual.proj": torch.eye(width), "head.norm.weight": state["ln_post.weight"]}
    tower |= {"head.norm.bias": state["ln_post.bias"]} if "ln_post.bias" in state else {}
    return assemble("st_adapter", tower, lambda key, value: _rename(key, value, place), fields)


def _rename(key: str, value: Tensor, place: str) -> dict[str, Tensor]:
    match = _ADAPTER.fullmatch(key)
    if match:
        second = place == "both" and match[2] == "adapter_pre_mlp"
        name = "st_adapter_before_mlp" if second else "st_adapter"
        return {f"encoder.layers.{match[1]}.adapters.{name}.{_LAYERS[match[3]]}.{match[4]}": value}
    return {key.replace("fc.", "head.linear.") if key.startswith("fc.") else key: value}
