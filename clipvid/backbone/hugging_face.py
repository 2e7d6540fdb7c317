"""Conversion of the weights of transformers' `CLIPModel`, `SiglipModel` and `XCLIPModel` to open_clip's names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig

from clipvid import InputError

# Prefixes of parameter names outside the layers.
_CLIP = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.": "visual.conv1.",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",
    "vision_model.post_layernorm.": "visual.ln_post.",
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
    "visual_projection.weight": "visual.proj",
    "text_model.embeddings.token_embedding.": "token_embedding.",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.encoder.layers.": "transformer.resblocks.",
    "text_model.final_layer_norm.": "ln_final.",
    "text_projection.weight": "text_projection",
    "logit_scale": "logit_scale",
}
_SIGLIP = {
    "vision_model.embeddings.patch_embedding.": "visual.trunk.patch_embed.proj.",
    "vision_model.embeddings.position_embedding.weight": "visual.trunk.pos_embed",
    "vision_model.encoder.layers.": "visual.trunk.blocks.",
    "vision_model.post_layernorm.": "visual.trunk.norm.",
    "vision_model.head.probe": "visual.trunk.attn_pool.latent",
    "vision_model.head.attention.in_proj_": "visual.trunk.attn_pool.qkv.",
    "vision_model.head.attention.out_proj.": "visual.trunk.attn_pool.proj.",
    "vision_model.head.layernorm.": "visual.trunk.attn_pool.norm.",
    "vision_model.head.mlp.": "visual.trunk.attn_pool.mlp.",
    "text_model.embeddings.token_embedding.": "text.token_embedding.",
    "text_model.embeddings.position_embedding.weight": "text.positional_embedding",
    "text_model.encoder.layers.": "text.transformer.resblocks.",
    "text_model.final_layer_norm.": "text.ln_final.",
    "text_model.head.": "text.text_projection.",
    "logit_scale": "logit_scale",
    "logit_bias": "logit_bias",
}
# Names outside CLIP become those of the authors' files.
XCLIP_NAMES = {key: value for key, value in _CLIP.items() if "pre_layrnorm" not in key} | {
    "vision_model.pre_layernorm.": "visual.ln_pre.",
    "mit.encoder.layers.": "mit.resblocks.",
    "mit.position_embedding": "mit.positional_embedding",
    "prompts_visual_layernorm.": "prompts_visual_ln.",
    "prompts_visual_projection": "prompts_visual_proj",
    "prompts_generator.layernorm.": "prompts_generator.norm.",
}
# Parts of parameter names within a layer, for blocks of open_clip and of timm.
_RESBLOCK = {"layer_norm": "ln_", "self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
_TIMM_BLOCK = {"layer_norm": "norm", "self_attn.out_proj": "attn.proj"}


def read_hugging_face(folder: Path) -> tuple[dict[str, Tensor], bool]:
    """Read weights under open_clip's names, and return True as second value if the model uses QuickGELU.

    Args:
        folder: Output of `CLIPModel.save_pretrained` or `SiglipModel.save_pretrained`, or a copy of such a repository.

    Raises:
        InputError: The model has another type, or the folder has no safetensors file.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    names = {"clip": _CLIP, "siglip": _SIGLIP}.get(config.model_type)
    files = sorted(folder.glob("*.safetensors"))
    if names is None or not files:
        raise InputError(
            f"{folder} has a model of type {config.model_type!r} in {len(files)} safetensors files; expected `clip` "
            "or `siglip` (transformers' CLIPModel, SiglipModel) and at least one file"
        )
    stored = {name: value for file in files for name, value in load_file(file).items()}
    return to_open_clip(stored, names), config.vision_config.hidden_act == "quick_gelu"


def to_open_clip(stored: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return tensors of transformers under open_clip's names: q, k and v are fused, projections transposed.

    Args:
        stored: Tensors by their names in transformers.
        names: Prefixes of names in transformers and open_clip.
    """
    state = {_rename(name, names): value for name, value in stored.items() if not name.endswith("position_ids")}
    for name in [name for name in state if re.search(r"(?<!cross_attn)\.q_proj\.(weight|bias)$", name)]:
        stem, kind = name.rsplit("q_proj.", 1)
        fused = f"{stem}qkv.{kind}" if ".trunk." in name else f"{stem}in_proj_{kind}"
        state[fused] = torch.cat([state.pop(f"{stem}{part}_proj.{kind}") for part in "qkv"])
    for name in [name for name in state if ".attn_pool.qkv." in name]:
        q, k, v = state.pop(name).chunk(3)
        state[name.replace("qkv", "q")], state[name.replace("qkv", "kv")] = q, torch.cat([k, v])
    for name in {"visual.proj", "text_projection"} & state.keys():
        state[name] = state[name].T
    for name in {"logit_scale", "logit_bias"} & state.keys():
        state[name] = state[name].reshape(())
    if "visual.trunk.pos_embed" in state:
        state["visual.trunk.pos_embed"] = state["visual.trunk.pos_embed"][None]
    return state


def _rename(name: str, names: Mapping[str, str]) -> str:
    start = next((start for start in names if name.startswith(start)), None)
    if start is None:
        return name  # open_clip reports it under this name
    renamed = names[start] + name.removeprefix(start)
    if start.endswith(".layers."):
        for old, new in (_TIMM_BLOCK if ".trunk." in renamed else _RESBLOCK).items():
            renamed = renamed.replace(old, new)
    return renamed.replace(".self_attn.", ".attn.")
