"""Checkpoints of ILA's authors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clipvid import InputError
from clipvid.backbone import NO_TEXT, build_backbone
from clipvid.backbone.state_dicts import load_strictly
from clipvid.model.config import ModelConfig
from clipvid.model.factory import assemble_model
from clipvid.model.video_clip import VideoCLIP

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # the authors' pixel statistics
_BLOCK = "visual.transformer.resblocks."
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
_TEXT_KEYS = (
    "positional_embedding",
    "token_embedding.",
    "transformer.",
    "ln_final.",
    "text_projection",
    "logit_scale",
)


def from_ila(
    state_dict: Mapping[str, Any], num_frames: int, norm: str = "batch", eval_batch_stats: bool = False
) -> VideoCLIP:
    """Build a `VideoCLIP` equal to the authors' ILA model. Its pixel statistics are theirs, those of ImageNet.

    Args:
        state_dict: State dict of the released checkpoint (or the whole checkpoint, with it under `model`). It contains
            CLIP under OpenAI's names, and ILA's tensors. All sizes are read from the tensors; attention heads are 64
            wide.
        num_frames: Number of frames T in its training.
        norm: Normalization, see `ILAConfig`.
        eval_batch_stats: Use batch statistics in evaluation, see `ILAConfig`.

    Raises:
        InputError: The file is not an ILA checkpoint, the frame count differs, or tensors have no place in the model.
            The message names them.
    """
    state = dict(state_dict.get("model", state_dict))
    if f"{_BLOCK}0.message_fc.weight" not in state:
        raise InputError(f"not an ILA checkpoint: no tensor {_BLOCK}0.message_fc.weight among {len(state)} entries")
    variant = "k400" if any("depthwise_conv" in key for key in state) else "ssv2"
    for key in ("mit.positional_embedding", "visual.proj", "visual.conv1.weight", "visual.positional_embedding"):
        if key not in state:
            raise InputError(f"not a complete ILA checkpoint: no tensor {key}")
    trained_frames = state["mit.positional_embedding"].shape[1]
    if trained_frames != num_frames:
        raise InputError(f"num_frames={num_frames}, but the checkpoint was trained with {trained_frames}")
    clip_state = {key: value.float() for key, value in state.items() if _is_clip(key)}
    backbone = build_backbone(_clip_config(clip_state), clip_state, "ila-checkpoint")
    options = {"variant": variant, "norm": norm, "eval_batch_stats": eval_batch_stats}
    model = assemble_model(backbone, _model_config(state, num_frames, options))
    own = model.trained_state()
    load_strictly(own, _rename(state, variant, clip_state.keys(), set(own)))
    return model.eval()


def _is_clip(key: str) -> bool:
    if key.startswith(_BLOCK):
        return key.split(".")[4] in ("attn", "ln_1", "ln_2", "mlp")
    return key.startswith(("visual.", *_TEXT_KEYS))


def _count_layers(state: Mapping[str, Any], prefix: str) -> int:
    indices = {key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)}
    return len(indices)


def _clip_config(state: dict[str, Tensor]) -> dict[str, Any]:
    width, _, patch, _ = state["visual.conv1.weight"].shape
    grid = round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
    vision = {
        "image_size": grid * patch,
        "patch_size": patch,
        "width": width,
        "layers": _count_layers(state, _BLOCK),
    }
    text = NO_TEXT
    if "token_embedding.weight" in state:
        vocab, text_width = state["token_embedding.weight"].shape
        text = {
            "context_length": len(state["positional_embedding"]),
            "vocab_size": vocab,
            "width": text_width,
            "heads": text_width // 64,
            "layers": _count_layers(state, "transformer.resblocks."),
        }
    embed_dim = state["visual.proj"].shape[1]
    return {"embed_dim": embed_dim, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}


def _model_config(state: Mapping[str, Tensor], num_frames: int, options: dict[str, Any]) -> ModelConfig:
    hidden = state[f"{_BLOCK}0.message_attn.conv.weight"].shape[0] * 2
    head: dict[str, Any] = {
        "name": "text",
        "prompt_layers": _count_layers(state, "prompts_generator.decoder."),
    }
    if "mit.classify_head.2.weight" in state:
        head = {"name": "linear", "num_classes": len(state["mit.classify_head.2.weight"])}
    return ModelConfig(
        backbone="ila-checkpoint",
        pixel_mean=IMAGENET_MEAN,
        pixel_std=IMAGENET_STD,
        adapter={"name": "ila", "hidden": hidden, **options},
        num_frames=num_frames,
        pooling={"name": "mit", "layers": _count_layers(state, "mit.resblocks.")},
        head=head,
    )


def _rename(state: Mapping[str, Tensor], variant: str, clip_names: Any, own_names: set[str]) -> dict[str, Tensor]:
    """Rename ILA's tensors. The radius of the jitter is not stored in the authors' file and has its initial value."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        if key not in clip_names:
            renamed |= _rename_one(key, value, variant)
    homeless = [key for key in renamed if key not in own_names]
    if homeless:
        raise InputError(f"the checkpoint has tensors with no place in an ILA model of its sizes: {homeless[:8]}")
    return {key: torch.tensor(0.2) for key in own_names if key.endswith(".jitter")} | renamed


def _rename_one(key: str, value: Tensor, variant: str) -> dict[str, Tensor]:
    block = re.fullmatch(r"visual\.transformer\.resblocks\.(\d+)\.(.+)", key)
    if block:
        name = _adapter_name(block[2], variant)
        if name == "temporal_conv.weight":
            value = value.flatten(2)
        return {f"encoder.layers.{block[1]}.adapters.ila.{name}": value}
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
            return _rename_head(key, ours + key[len(theirs) :], value)
    return {key: value}


def _adapter_name(name: str, variant: str) -> str:
    name = name.replace("message_attn.conv.", "temporal_conv.").replace("message_attn.fc.", "interactive_fc.")
    layer = re.fullmatch(r"message_attn\.(interactive_block|prediction_block)\.(.+)\.(\w+)", name)
    if not layer:
        return name
    if layer[1] == "interactive_block":
        return f"interactive_block.{_CONVS[variant].get(layer[2], layer[2])}.{layer[3]}"
    return f"point_predictor.{_POINTS.get(layer[2], layer[2])}.{layer[3]}"


def _rename_head(key: str, name: str, value: Tensor) -> dict[str, Tensor]:
    """Rename tensors of MIT and prompts: split fused attention, rename linears, transpose matrices."""
    if key == "mit.positional_embedding":
        return {name: value[0]}
    if key == "prompts_visual_proj":
        return {name: value.T}
    fused = re.fullmatch(r"(.+\.attn)\.in_proj_(weight|bias)", name)
    if fused:
        return {f"{fused[1]}.{part}.{fused[2]}": chunk for part, chunk in zip("qkv", value.chunk(3), strict=True)}
    name = re.sub(r"cross_attn\.([qkv])_proj", r"cross_attn.\1", name)
    name = name.replace("attn.out_proj.", "attn.out.").replace("cross_attn.proj.", "cross_attn.out.")
    name = name.replace("mlp.c_fc.", "mlp.0.").replace("mlp.c_proj.", "mlp.2.")
    return {re.sub(r"(video_prompts\.layers\.\d+\.mlp)\.3\.", r"\1.2.", name): value}
