"""Checkpoints of ActionCLIP, whose transformer over frames other methods use too.

A file has two state dicts, `model_state_dict` (CLIP) and `fusion_model_state_dict` (the transformer).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from clipvid import InputError
from clipvid.convert.openai_names import assemble, count_layers, read_state, rename_block, require_frames
from clipvid.data.preprocessing import Preprocessing
from clipvid.model.video_clip import VideoCLIP

MODEL: str = "model_state_dict"
FUSION: str = "fusion_model_state_dict"
POSITIONS = "frame_position_embeddings.weight"
EPS = 1e-12  # of the authors' LayerNorm


def from_action_clip(checkpoint: Mapping[str, Any], num_frames: int | None = None) -> VideoCLIP:
    """Build a `VideoCLIP` equal to ActionCLIP with its temporal transformer (https://arxiv.org/abs/2109.08472).

    The authors average the probabilities of 16 templates; clipvid averages their text features (`action_clip` of
    `clipvid.model.prompts.TEMPLATES`). With one template both are the same.

    Args:
        checkpoint: The released checkpoint.
        num_frames: Number of frames T per clip, which the file does not contain. The released ones have 8, 16 and 32.

    Raises:
        InputError: The file is not such a checkpoint, or tensors are missing or have no place in the model. The message
            lists them.
    """
    clip, fusion = two_states(checkpoint, "ActionCLIP")
    if any(".mlp.fc_up." in key for key in fusion):
        raise InputError(
            "not an ActionCLIP checkpoint: its transformer has experts, as that of MoTE; convert it as mote"
        )
    return assemble_over_time("action_clip", clip, fusion, require_frames("ActionCLIP", num_frames), {"name": "text"})


def two_states(checkpoint: Mapping[str, Any], kind: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors of CLIP and of the transformer over frames.

    Raises:
        InputError: One of them is missing.
    """
    missing = [name for name in (MODEL, FUSION) if not isinstance(checkpoint.get(name), Mapping)]
    if missing:
        raise InputError(f"not a checkpoint of {kind}: missing {' and '.join(missing)}")
    clip, fusion = read_state(checkpoint, MODEL), read_state(checkpoint, FUSION)
    if POSITIONS not in fusion:
        raise InputError(f"not a checkpoint of {kind} with a transformer over frames: missing {POSITIONS}")
    return clip, fusion


def assemble_over_time(
    kind: str, clip: dict[str, Tensor], fusion: dict[str, Tensor], num_frames: int, head: dict[str, Any]
) -> VideoCLIP:
    """Build the model of CLIP's tensors and those of a transformer over frames; see `assemble` for errors."""
    positions = len(fusion[POSITIONS])
    if not 1 <= num_frames <= positions:
        raise InputError(f"num_frames={num_frames}: the checkpoint has positions for 1 to {positions} frames")
    layers = count_layers(fusion, "transformer.resblocks.")
    fields = {
        "adapter": "none",
        "num_frames": num_frames,
        "pooling": {"name": "mit", "layers": layers, "eps": EPS, "positions": positions},
        "head": head,
    }
    # The transformer over frames has the names of CLIP's text tower, so it gets a prefix.
    state = clip | {f"fusion.{key}": value for key, value in fusion.items()}
    model = assemble(kind, state, _rename, fields)
    model.preprocessing = Preprocessing(resize="bilinear_center")
    return model


def _rename(key: str, value: Tensor) -> dict[str, Tensor]:
    name = key.removeprefix("fusion.")
    if name == POSITIONS:
        return {"pooling.position": value}
    return rename_block(name.replace("transformer.resblocks.", "pooling.blocks."), value)
