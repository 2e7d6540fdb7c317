"""Change of the image size of a CLIP model's image tower."""

from __future__ import annotations

from operator import floordiv
from types import SimpleNamespace
from typing import Any

from open_clip.model import resize_pos_embed
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import nn

from clipvid import InputError


def resize(visual: nn.Module, image_size: int | tuple[int, int]) -> None:
    """Resample position embeddings, in float32, since half precision is not supported on CPU.

    Raises:
        InputError: The size is not a multiple of the patch size.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if isinstance(visual, TimmModel):
        embed: Any = getattr(visual.trunk, "patch_embed", None)
        if hasattr(visual.trunk, "set_input_size") and tuple(embed.img_size) != size:
            _check_patches(size, tuple(map(floordiv, embed.img_size, embed.grid_size)))  # includes the stride of a stem
            visual.set_input_size(size)
    elif isinstance(visual, VisionTransformer) and tuple(visual.image_size) != size:
        _check_patches(size, visual.patch_size)
        visual.image_size = size
        visual.grid_size = (size[0] // visual.patch_size[0], size[1] // visual.patch_size[1])
        state = {"visual.positional_embedding": visual.positional_embedding.detach()}
        resize_pos_embed(state, SimpleNamespace(visual=visual))
        visual.positional_embedding = nn.Parameter(
            state["visual.positional_embedding"], visual.positional_embedding.requires_grad
        )


def _check_patches(size: tuple[int, ...], patch: tuple[int, ...]) -> None:
    if any(side % step for side, step in zip(size, patch, strict=True)):
        raise InputError(f"image_size={size[0]} is not a multiple of the tower's patch size, {patch[0]} pixels")
