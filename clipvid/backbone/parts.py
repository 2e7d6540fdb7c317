"""`Backbone`, a CLIP model split into parts. For shapes see `clipvid.backbone`."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.timm_model import TimmModel
from open_clip.tokenizer import HFTokenizer
from open_clip.transformer import VisionTransformer
from safetensors.torch import save_file
from torch import Tensor, nn

from clipvid import InputError
from clipvid.backbone.timm_towers import TimmBlock, TimmTower, take_timm_apart
from clipvid.backbone.towers import NO_TEXT, Block, TextTower, VisionTower
from clipvid.files import replacing, write_text

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
# Files of a saved backbone: config, weights, and the files of a transformers tokenizer.
BACKBONE_FILES = (
    CONFIG_FILE,
    WEIGHTS_FILE,
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
)


@dataclass
class Backbone:
    """CLIP model split into parts. The parts are registered by the model that uses them, not here.

    Attributes:
        name: Name of the model in open_clip.
        pretrained: Tag or path of the weights in open_clip.
        is_public: True if name and pretrained load the same weights on any machine. Otherwise they are saved as a copy.
        config: open_clip's `model_cfg`.
        mean: Mean of the pixels, in 0..1.
        std: Standard deviation of the pixels, in 0..1.
        cast_fingerprint: Fingerprint before the weights were cast to another floating type, see `keep_fingerprint`.
    """

    name: str
    pretrained: str | None
    is_public: bool
    config: dict[str, Any]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    vision: VisionTower | TimmTower
    blocks: list[Block | TimmBlock]
    text: TextTower
    cast_fingerprint: str | None = None

    @property
    def image_size(self) -> int:
        """Side of the square images in pixels. For other images, the height."""
        return self.vision.image_shape[0]

    @property
    def num_heads(self) -> int:
        """Number of attention heads of a block."""
        heads: int = self.blocks[0].attn.num_heads
        return heads

    def clone_sharing_weights(self) -> Backbone:
        """Return a copy with new modules and shared weights. Layers added to the copy do not change the original."""
        parts: Any = nn.ModuleList([self.vision, *self.blocks, self.text])
        kept: list[Any] = [*parts.parameters(), *parts.buffers(), self.text.tokenizer]
        vision, *blocks, text = copy.deepcopy(list(parts), {id(item): item for item in kept})
        return dataclasses.replace(self, vision=vision, blocks=blocks, text=text)

    def stages(self) -> list[list[list[nn.Parameter]]]:
        """Return image tower and text tower, each as its stages from input to output: embedding, every block, the rest.

        A text tower of another library is one stage.
        """
        text_blocks = getattr(getattr(self.text.clip, "text", self.text.clip), "transformer", None)
        towers = (self.vision, self.blocks), (self.text, getattr(text_blocks, "resblocks", []))
        stages = []
        for tower, blocks in towers:
            before, after = tower.ends()
            stages.append([before, *([*block.parameters()] for block in blocks), after])
        return stages

    def open_clip_state_dict(self) -> dict[str, Tensor]:
        """Return all weights under open_clip's names, with fused attention."""
        state = {key: value for key, value in self.text.clip.state_dict().items() if not key.startswith("visual.")}
        state |= {f"visual.{key}": value for key, value in self.vision.visual.state_dict().items()}
        for index, block in enumerate(self.blocks):
            prefix = f"visual.{self.vision.blocks_prefix}.{index}."
            state |= {prefix + key: value for key, value in block.open_clip_state().items()}
        return state

    def fingerprint(self) -> str:
        """Return the SHA-256 over names, shapes and float32 values of all weights, as they were before a cast."""
        if self.is_public and self.cast_fingerprint is not None:
            return self.cast_fingerprint
        digest = hashlib.sha256()
        for key, value in sorted(self.open_clip_state_dict().items()):
            digest.update(f"{key}{tuple(value.shape)}".encode())
            digest.update(value.detach().float().contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()

    def keep_fingerprint(self) -> None:
        """Store the fingerprint of public weights before a cast to another floating type."""
        if self.is_public:
            self.cast_fingerprint = self.fingerprint()

    def open_clip_model(self, with_text: bool = False) -> nn.Module:
        """Return open_clip's model with a copy of the image tower's weights, as a reference.

        Args:
            with_text: Add a text tower of the same shape, with random weights.
        """
        config = {key: self.config[key] for key in ("embed_dim", "vision_cfg", "quick_gelu") if key in self.config}
        clip: Any = open_clip.CLIP(**config, text_cfg=self.config["text_cfg"] if with_text else NO_TEXT)
        state = self.open_clip_state_dict().items()
        clip.visual.load_state_dict({key[7:]: value for key, value in state if key.startswith("visual.")})
        return clip.eval()

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Write a folder for `local-dir:`, here and in open_clip. Weights are cast to `dtype` if it is given."""
        folder.mkdir(parents=True, exist_ok=True)
        preprocess = {"mean": self.mean, "std": self.std, "size": self.image_size}
        config = {"model_cfg": self.config, "preprocess_cfg": preprocess}
        write_text(folder / CONFIG_FILE, json.dumps(config, indent=2) + "\n")
        state = {
            key: value.detach().to("cpu", dtype).contiguous() for key, value in self.open_clip_state_dict().items()
        }
        with replacing(folder / WEIGHTS_FILE) as aside:
            save_file(state, aside, metadata={"format": "pt"})
        if isinstance(self.text.tokenizer, HFTokenizer):  # `local-dir:` reads it from the folder of the weights
            self.text.tokenizer.save_pretrained(folder)


def split_clip(
    clip: nn.Module,
    tokenizer: Any,
    name: str,
    pretrained: str | None,
    is_public: bool,
    config: dict[str, Any],
) -> Backbone:
    """Split an open_clip model into parts. The model itself is left empty.

    Raises:
        InputError: The image tower has no ViT blocks.
    """
    visual = clip.visual
    vision: VisionTower | TimmTower
    blocks: list[Block | TimmBlock]
    if isinstance(visual, VisionTransformer):
        visual.output_tokens = False
        vision, blocks = VisionTower(visual), [Block(source) for source in visual.transformer.resblocks]
        visual.transformer = nn.Identity()
    elif isinstance(visual, TimmModel):
        vision, blocks = take_timm_apart(visual, name)
    else:
        raise InputError(
            f"backbone {name!r} has a {type(visual).__name__} image tower without ViT blocks; supported: open_clip's "
            "native ViTs (ViT-B-32, ViT-L-14, ... of OpenAI, LAION, DataComp, MetaCLIP) and timm's (SigLIP, PE-Core, "
            "EVA)"
        )
    clip.visual = nn.Identity()
    pixels = getattr(visual, "preprocess_cfg", {})
    mean = tuple(pixels.get("mean", open_clip.OPENAI_DATASET_MEAN))
    std = tuple(pixels.get("std", open_clip.OPENAI_DATASET_STD))
    return Backbone(name, pretrained, is_public, config, mean, std, vision, blocks, TextTower(clip, tokenizer))
