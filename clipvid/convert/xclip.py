"""Checkpoints of X-CLIP: the authors' `.pth` files, and the tensors of transformers' `XCLIPModel`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from clipvid import InputError
from clipvid.backbone.hugging_face import XCLIP_NAMES, to_open_clip
from clipvid.convert.openai_names import (
    BLOCK,
    IMAGENET_PIXELS,
    PixelStatistics,
    assemble,
    count_layers,
    read_state,
    rename_block,
    rename_head,
    trained_frames,
)
from clipvid.data.preprocessing import Preprocessing
from clipvid.model.video_clip import VideoCLIP


def from_xclip(
    state_dict: Mapping[str, Any],
    num_frames: int | None = None,
    heads: tuple[int | None, int | None] = (None, None),
    drop_path: float = 0.0,
    statistics: PixelStatistics = IMAGENET_PIXELS,
) -> VideoCLIP:
    """Build a `VideoCLIP` equal to the authors' X-CLIP (https://arxiv.org/abs/2208.02816).

    Args:
        state_dict: State dict of the released checkpoint (or the whole checkpoint, with it under `model`). All sizes
            are read from the tensors.
        num_frames: Number of frames T in its training, to be checked.
        heads: Attention heads of the image and the text tower. By default each is 64 wide.
        drop_path: See `clipvid.adapters.xclip.XCLIPConfig`.
        statistics: Fields `pixel_mean` and `pixel_std` of `ModelConfig`. By default the authors', ImageNet's.

    Raises:
        InputError: The file is not an X-CLIP checkpoint, the frame count differs, or tensors are missing or have no
            place in the model. The message lists them.
    """
    state = read_state(state_dict)
    if f"{BLOCK}0.message_attn.in_proj_weight" not in state:
        raise InputError(
            f"not an X-CLIP checkpoint: no tensor {BLOCK}0.message_attn.in_proj_weight among {len(state)} entries"
        )
    fields = {
        "adapter": {"name": "xclip", "drop_path": drop_path},
        "num_frames": trained_frames(state, num_frames),
        "pooling": {"name": "mit", "layers": count_layers(state, "mit.resblocks.")},
        "head": {"name": "text", "prompt_layers": count_layers(state, "prompts_generator.decoder.")},
        **statistics,
    }
    model = assemble("xclip", state, _rename, fields, heads)
    model.preprocessing = Preprocessing(resize="bilinear_center")
    return model


def from_xclip_transformers(
    state_dict: Mapping[str, Tensor],
    heads: tuple[int, int],
    drop_path: float = 0.0,
    statistics: PixelStatistics = IMAGENET_PIXELS,
) -> VideoCLIP:
    """Build a `VideoCLIP` equal to transformers' `XCLIPModel` with these tensors; see `from_xclip`."""
    state = to_open_clip(state_dict, XCLIP_NAMES)
    return from_xclip(state, heads=heads, drop_path=drop_path, statistics=statistics)


def _rename(key: str, value: Tensor) -> dict[str, Tensor]:
    block = re.fullmatch(r"visual\.transformer\.resblocks\.(\d+)\.(message_.+)", key)
    if block:
        return rename_block(f"encoder.layers.{block[1]}.adapters.xclip.{block[2]}", value)
    return rename_head(key, value)
