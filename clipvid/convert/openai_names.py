"""Parts that released checkpoints share: CLIP under OpenAI's names, MIT pooling and video-specific prompts.

Shapes: T frames, D width of the tower, E embedding.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from torch import Tensor

from clipvid import InputError
from clipvid.backbone import NO_TEXT, build_backbone
from clipvid.backbone.state_dicts import load_strictly
from clipvid.model.config import ModelConfig
from clipvid.model.factory import assemble_model
from clipvid.model.video_clip import VideoCLIP

BLOCK = "visual.transformer.resblocks."
PixelStatistics: TypeAlias = Mapping[str, tuple[float, float, float]]  # `pixel_mean`, `pixel_std` of `ModelConfig`
IMAGENET_PIXELS: PixelStatistics = {"pixel_mean": (0.485, 0.456, 0.406), "pixel_std": (0.229, 0.224, 0.225)}
_CLIP_PARTS = ("attn", "ln_1", "ln_2", "mlp")
_TEXT_KEYS = (
    "positional_embedding",
    "token_embedding.",
    "transformer.",
    "ln_final.",
    "text_projection",
    "logit_scale",
)
_REQUIRED = ("visual.proj", "visual.conv1.weight", "visual.positional_embedding", "visual.class_embedding")
_SIZES = ("input_resolution", "context_length", "vocab_size")  # numbers in OpenAI's own files
Rename = Callable[[str, Tensor], dict[str, Tensor]]


def read_state(checkpoint: Mapping[str, Any], entry: str = "model") -> dict[str, Any]:
    """Return a checkpoint, or the state dict in its `entry`, without the prefix of parallel training.

    Raises:
        InputError: The entry is not a state dict.
    """
    state = checkpoint.get(entry, checkpoint)
    if not isinstance(state, Mapping):
        raise InputError(f"the entry {entry!r} of the checkpoint is a {type(state).__name__}, expected a state dict")
    return {str(key).removeprefix("module."): value for key, value in state.items() if key not in _SIZES}


def is_clip(key: str) -> bool:
    """Return True for tensors of CLIP: its towers without adapters, and the scale of the logits."""
    if key.startswith(BLOCK):
        return key.split(".")[4] in _CLIP_PARTS
    return key.startswith(("visual.", *_TEXT_KEYS))


def count_layers(state: Mapping[str, Any], prefix: str) -> int:
    """Return the number of different next parts of the names that begin with `prefix`."""
    return len({key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)})


def clip_config(
    state: Mapping[str, Tensor], vision_heads: int | None = None, text_heads: int | None = None
) -> dict[str, Any]:
    """Return open_clip's `model_cfg` for the sizes of the tensors of a CLIP. Heads are 64 wide by default.

    Raises:
        InputError: A tensor that determines a size is missing or has another number of dimensions.
    """
    missing = [key for key in _REQUIRED if key not in state]
    if missing:
        raise InputError(f"not a complete checkpoint: missing {_listed(missing)}")
    try:
        width, _, patch, _ = state["visual.conv1.weight"].shape
        tokens, embed_dim = len(state["visual.positional_embedding"]), state["visual.proj"].shape[1]
        text = NO_TEXT if "token_embedding.weight" not in state else _text_config(state, text_heads)
    except (ValueError, IndexError, KeyError) as error:
        raise InputError(
            f"the checkpoint's CLIP is damaged: a tensor is missing or has a wrong shape ({error})"
        ) from None
    vision = {
        "image_size": round((tokens - 1) ** 0.5) * patch,
        "patch_size": patch,
        "width": width,
        "layers": count_layers(state, BLOCK),
        "head_width": 64 if vision_heads is None else width // vision_heads,
    }
    return {"embed_dim": embed_dim, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}


def _text_config(state: Mapping[str, Tensor], heads: int | None) -> dict[str, Any]:
    vocabulary, width = state["token_embedding.weight"].shape
    return {
        "context_length": len(state["positional_embedding"]),
        "vocab_size": vocabulary,
        "width": width,
        "heads": width // 64 if heads is None else heads,
        "layers": count_layers(state, "transformer.resblocks."),
    }


def assemble(
    kind: str,
    state: Mapping[str, Any],
    rename: Rename,
    fields: Mapping[str, Any],
    heads: tuple[int | None, int | None] = (None, None),
    buffers: tuple[str, ...] = (),
) -> VideoCLIP:
    """Build a model from tensors whose CLIP has OpenAI's names, in evaluation mode.

    Args:
        kind: Name of the kind, for messages and as name of the backbone.
        state: All tensors.
        rename: Function from name and value of a tensor outside CLIP to clipvid's names and values.
        fields: Fields of `ModelConfig`.
        heads: Attention heads of the image and the text tower, see `clip_config`.
        buffers: Ends of names that no file contains, and which keep their initial value.

    Raises:
        InputError: Tensors are missing, have no place in the model, or have another shape. The message lists them.
    """
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    clip_state = {key: value.float() for key, value in tensors.items() if is_clip(key)}
    name = f"{kind}-checkpoint"
    backbone = build_backbone(clip_config(clip_state, *heads), clip_state, name)
    model = assemble_model(backbone, ModelConfig(backbone=name, **fields))
    own = {key: value for key, value in model.trained_state().items() if not key.endswith(buffers or (" ",))}
    renamed: dict[str, Tensor] = {}
    homeless = [key for key in state if key not in tensors]
    for key, value in tensors.items():
        if key not in clip_state:
            parts = rename(key, value)
            renamed |= parts
            homeless += [key] if parts.keys() - own.keys() else []
    if homeless:
        raise InputError(f"the checkpoint has tensors with no place in {kind} of its sizes: {_listed(homeless)}")
    load_strictly(own, renamed)
    return model.eval()


def rename_head(key: str, value: Tensor) -> dict[str, Tensor]:
    """Rename tensors of MIT pooling, of video-specific prompts and of ILA's linear head. Others keep their name."""
    for theirs, ours in (
        ("mit.positional_embedding", "pooling.position"),
        ("mit.resblocks.", "pooling.blocks."),
        ("mit.classify_head.0.", "head.norm."),
        ("mit.classify_head.2.", "head.linear."),
        ("prompts_visual_ln.", "head.video_prompts.visual_ln."),
        ("prompts_visual_proj", "head.video_prompts.visual_proj.weight"),
        ("prompts_generator.decoder.", "head.video_prompts.layers."),
        ("prompts_generator.", "head.video_prompts."),
    ):
        if key.startswith(theirs):
            return _head_values(key, ours + key[len(theirs) :], value)
    return {key: value}


def _head_values(key: str, name: str, value: Tensor) -> dict[str, Tensor]:
    if key == "mit.positional_embedding":
        return {name: value[0]}
    if key == "prompts_visual_proj":
        return {name: value.T}
    name = re.sub(r"cross_attn\.([qkv])_proj", r"cross_attn.\1", name).replace("cross_attn.proj.", "cross_attn.out.")
    name = re.sub(r"(video_prompts\.layers\.\d+\.mlp)\.3\.", r"\1.2.", name)
    return rename_block(name, value)


def rename_block(name: str, value: Tensor) -> dict[str, Tensor]:
    """Rename a tensor of a transformer block: split fused attention into q, k and v, and number the MLP's linears."""
    fused = re.fullmatch(r"(.+attn)\.in_proj_(weight|bias)", name)
    if fused:
        return {f"{fused[1]}.{part}.{fused[2]}": chunk for part, chunk in zip("qkv", value.chunk(3), strict=True)}
    name = name.replace("attn.out_proj.", "attn.out.")
    return {name.replace("mlp.c_fc.", "mlp.0.").replace("mlp.c_proj.", "mlp.2."): value}


def trained_frames(state: Mapping[str, Tensor], num_frames: int | None) -> int:
    """Return T of MIT's positions.

    Raises:
        InputError: The positions are missing, or their number is not `num_frames`.
    """
    position = state.get("mit.positional_embedding")
    if position is None or position.ndim != 3:
        raise InputError("not a complete checkpoint: no tensor mit.positional_embedding of shape [1, T, E]")
    if num_frames not in (None, position.shape[1]):
        raise InputError(f"num_frames={num_frames}, but the checkpoint was trained with {position.shape[1]}")
    return int(position.shape[1])


def require_frames(kind: str, num_frames: int | None) -> int:
    """Return `num_frames`.

    Raises:
        InputError: It is None. Files of this kind do not contain it.
    """
    if num_frames is None:
        raise InputError(f"files of {kind} do not contain the number of frames per clip: pass num_frames")
    return num_frames


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:8]) + (f" and {len(ordered) - 8} more" if len(ordered) > 8 else "")
