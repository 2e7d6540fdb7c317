"""Checkpoints of ViFi-CLIP: a CLIP whose two towers are fine-tuned on videos, with the mean over frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipvid import InputError
from clipvid.backbone import Backbone
from clipvid.convert.openai_names import IMAGENET_PIXELS, assemble, read_state, require_frames
from clipvid.data.preprocessing import Preprocessing
from clipvid.model.video_clip import VideoCLIP

_EMBEDDED_NAMES = "prompt_learner.complete_text_embeddings"  # of the classes of its data set, made by CLIP's embedding
_EMBEDDING = "token_embedding.weight"


def from_vifi_clip(
    state_dict: Mapping[str, Any], num_frames: int | None = None, base: Backbone | None = None
) -> VideoCLIP:
    """Build a `VideoCLIP` equal to ViFi-CLIP (https://arxiv.org/abs/2212.03640).

    Args:
        state_dict: State dict of the released checkpoint (or the whole checkpoint, with it under `model`).
        num_frames: Number of frames T per clip, which the file does not contain. The authors use 16 and 32.
        base: CLIP that ViFi-CLIP was trained from. Its token embeddings are not in the file, and were not trained.

    Raises:
        InputError: The file is not a ViFi-CLIP checkpoint, `base` is missing or of another size, or tensors are missing
            or have no place in the model. The message lists them.
    """
    state = read_state(state_dict)
    if not any(key.startswith("text_encoder.") for key in state) or "image_encoder.proj" not in state:
        raise InputError(f"not a ViFi-CLIP checkpoint: no image_encoder and text_encoder among {len(state)} entries")
    if base is None:
        raise InputError(
            "a ViFi-CLIP checkpoint has no token embeddings: name the CLIP that it was trained from "
            "(--backbone ViT-B-16 --pretrained openai)"
        )
    embedding = base.open_clip_state_dict().get(_EMBEDDING)
    position = state.get("text_encoder.positional_embedding")
    if embedding is None or (position is not None and embedding.shape[1] != position.shape[1]):
        raise InputError(f"the token embeddings of {base.name} do not fit the checkpoint's text tower")
    renamed = {_openai_name(key): value for key, value in state.items() if key != _EMBEDDED_NAMES}
    renamed[_EMBEDDING] = embedding
    fields = {"adapter": "none", "num_frames": require_frames("ViFi-CLIP", num_frames), **IMAGENET_PIXELS}
    model = assemble("vifi_clip", renamed, lambda key, value: {key: value}, fields)
    model.preprocessing = Preprocessing(resize="bilinear_center")
    return model


def _openai_name(key: str) -> str:
    if key.startswith("image_encoder."):
        return "visual." + key.removeprefix("image_encoder.")
    return key.removeprefix("text_encoder.")
