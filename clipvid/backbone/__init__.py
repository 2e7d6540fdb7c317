"""CLIP towers through open_clip; nothing outside of this folder imports it.

A tower is taken apart into what a video encoder needs: patch embedding, blocks in two halves (attention, MLP) with
the residual stream between them, and the tower's own pooling head. Fused attention is replaced once by q, k, v and
out linears around `scaled_dot_product_attention`; state dicts map both ways.

Shapes: M images, P prefix tokens, N = H x W patches, D width, E embedding, K texts, L text length.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import torch
from open_clip.model import resize_pos_embed
from open_clip.pretrained import get_pretrained_cfg
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from safetensors.torch import save_file
from torch import Tensor, nn

from clipvid.backbone.hugging_face import read_hugging_face
from clipvid.backbone.timm_towers import TimmBlock, TimmTower, take_timm_apart
from clipvid.backbone.towers import NO_TEXT, Block, TextTower, VisionTower

TINY = "tiny"
RANDOM = "random"
_TINY_FOLDER = Path(__file__).parent.parent / "weights" / TINY
_CONFIG_FILE = "open_clip_config.json"
_WEIGHTS_FILE = "open_clip_model.safetensors"


@dataclass
class Backbone:
    """A CLIP model in parts. The parts are registered by the model that uses them, not here.

    name, pretrained: how open_clip finds it.
    fetchable: name and pretrained bring the same weights again, anywhere; if not, only a copy of them does.
    mean, std: normalisation constants of the pixels, on the scale 0..1.
    config: open_clip's `model_cfg`.
    """

    name: str
    pretrained: str | None
    fetchable: bool
    config: dict[str, Any]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    vision: VisionTower | TimmTower
    blocks: list[Block | TimmBlock]
    text: TextTower

    @property
    def image_size(self) -> int:
        """Side of the square images, in pixels; the height where a tower's images are not square."""
        return self.vision.image_shape[0]

    @property
    def num_heads(self) -> int:
        """Attention heads of a block."""
        heads: int = self.blocks[0].attn.num_heads
        return heads

    def shared(self) -> Backbone:
        """The same weights in modules of its own: what is put into these is not in the others."""
        parts: Any = nn.ModuleList([self.vision, *self.blocks, self.text])
        kept: list[Any] = [*parts.parameters(), *parts.buffers(), self.text.tokenizer]
        vision, *blocks, text = copy.deepcopy(list(parts), {id(item): item for item in kept})
        return dataclasses.replace(self, vision=vision, blocks=blocks, text=text)

    def stages(self) -> list[list[list[nn.Parameter]]]:
        """Image tower and text tower, each as its stages from input to output: embedding, every block, the rest.

        A text tower that is not open_clip's own is one stage.
        """
        text_blocks = getattr(getattr(self.text.clip, "text", self.text.clip), "transformer", None)
        towers = (self.vision, self.blocks), (self.text, getattr(text_blocks, "resblocks", []))
        found = []
        for tower, blocks in towers:
            before, after = tower.ends()
            found.append([before, *([*block.parameters()] for block in blocks), after])
        return found

    def open_clip_state_dict(self) -> dict[str, Tensor]:
        """All weights under open_clip's names, attention fused again."""
        state = {key: value for key, value in self.text.clip.state_dict().items() if not key.startswith("visual.")}
        state |= {f"visual.{key}": value for key, value in self.vision.visual.state_dict().items()}
        for index, block in enumerate(self.blocks):
            prefix = f"visual.{self.vision.blocks_prefix}.{index}."
            state |= {prefix + key: value for key, value in block.open_clip_state().items()}
        return state

    def fingerprint(self) -> str:
        """SHA-256 over names, shapes and float32 values of all weights."""
        digest = hashlib.sha256()
        for key, value in sorted(self.open_clip_state_dict().items()):
            digest.update(f"{key}{tuple(value.shape)}".encode())
            digest.update(value.detach().float().contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()

    def open_clip_model(self) -> nn.Module:
        """open_clip's own model with a copy of the image tower's weights and no text tower, to compare with."""
        config = {key: self.config[key] for key in ("embed_dim", "vision_cfg", "quick_gelu") if key in self.config}
        clip: Any = open_clip.CLIP(**config, text_cfg=NO_TEXT)
        state = self.open_clip_state_dict().items()
        clip.visual.load_state_dict({key[7:]: value for key, value in state if key.startswith("visual.")})
        return clip.eval()

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Write a folder that `local-dir:` loads, in open_clip or here; weights in `dtype` where one is given."""
        folder.mkdir(parents=True, exist_ok=True)
        preprocess = {"mean": self.mean, "std": self.std, "size": self.image_size}
        config = {"model_cfg": self.config, "preprocess_cfg": preprocess}
        (folder / _CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
        state = {
            key: value.detach().to("cpu", dtype).contiguous() for key, value in self.open_clip_state_dict().items()
        }
        save_file(state, folder / _WEIGHTS_FILE, metadata={"format": "pt"})


def load_backbone(name: str, pretrained: str | None = None, image_size: int | None = None) -> Backbone:
    """A CLIP model by open_clip's name.

    Args:
        name: `tiny` (the small CLIP inside this package), a name of `open_clip.list_models()`, `hf-hub:org/repo` or
            `local-dir:/path` with open_clip's config and weights.
        pretrained: tag of `open_clip.list_pretrained()`, a file, a folder of transformers' `CLIPModel` or
            `SiglipModel`, or `random`; None leaves a named tower random, with a warning.
        image_size: side in pixels, when it is not the pretrained one; position embeddings are resampled.

    Raises:
        ValueError: unknown name or tag, a tower that is no ViT, or an image size that it cannot have.
        RuntimeError: weights that cannot be fetched or do not fit; says where they were looked for.
    """
    source = f"local-dir:{_TINY_FOLDER}" if name == TINY else name
    config = _find_config(name, source)
    options = _weight_options(name, config, pretrained)
    given = None
    if pretrained is not None and _is_folder(name, pretrained):
        given, quick_gelu = read_hugging_face(Path(pretrained))
        if config.get("quick_gelu") and not quick_gelu:
            raise ValueError(f"{pretrained} was trained with GELU, {name} has QuickGELU: take the name without it")
        options["force_quick_gelu"] = quick_gelu
    if not options.get("load_weights", True):
        logging.disable(logging.WARNING)  # open_clip warns of random weights
    try:
        clip = open_clip.create_model(source, force_patch_dropout=0.0, **options)
        if given is not None:
            clip.load_state_dict(given)
    except Exception as error:
        raise RuntimeError(_fetch_advice(name, pretrained, error)) from error
    finally:
        logging.disable(logging.NOTSET)
    config |= {"quick_gelu": options["force_quick_gelu"]} if options.get("force_quick_gelu") else {}
    if image_size is not None:
        config["vision_cfg"]["image_size"] = image_size
        if isinstance(clip.visual, VisionTransformer):
            _resize(clip.visual, image_size)
        elif isinstance(clip.visual, TimmModel) and clip.visual.image_size != (image_size, image_size):
            raise ValueError(
                f"image_size={image_size}: the image tower of {name} is of timm and made for "
                f"{clip.visual.image_size[0]}; leave it out, or take a tower of that size by name"
            )
    try:
        tokenizer = open_clip.get_tokenizer(source)
    except Exception as error:
        raise RuntimeError(_fetch_advice(name, pretrained, error)) from error
    return _take_apart(clip.eval(), tokenizer, name, pretrained, _is_fetchable(name, pretrained), config)


def _resize(visual: VisionTransformer, image_size: int) -> None:
    """As open_clip does while loading, but in float32: on CPU a file in half precision cannot be resampled."""
    visual.image_size = (image_size, image_size)
    visual.grid_size = (image_size // visual.patch_size[0], image_size // visual.patch_size[1])
    state = {"visual.positional_embedding": visual.positional_embedding.detach()}
    resize_pos_embed(state, SimpleNamespace(visual=visual))
    visual.positional_embedding = nn.Parameter(
        state["visual.positional_embedding"], visual.positional_embedding.requires_grad
    )


def hub_repository(name: str, pretrained: str | None) -> str | None:
    """The repository on the Hub that a backbone's weights come from, None where there is none."""
    if name.startswith("hf-hub:"):
        return name.removeprefix("hf-hub:")
    tag = get_pretrained_cfg(name, pretrained) if pretrained else None
    return "/".join(tag["hf_hub"].split("/")[:2]) if tag and tag.get("hf_hub") else None


def build_backbone(config: dict[str, Any], state_dict: dict[str, Tensor], name: str) -> Backbone:
    """A CLIP model from open_clip's `model_cfg` and weights under open_clip's names, all of them.

    Without text tower: `config["text_cfg"]` is `NO_TEXT`, and the weights of the image tower suffice.
    """
    clip = open_clip.CLIP(**config)
    if config["text_cfg"] == NO_TEXT:
        placeholders = {key: torch.zeros_like(value) for key, value in clip.state_dict().items()}
        state_dict = {key: value for key, value in placeholders.items() if not key.startswith("visual.")} | state_dict
    try:
        clip.load_state_dict(state_dict)
    except RuntimeError as error:
        raise ValueError(f"the weights of {name} do not fit its config: {error}") from error
    tokenizer = open_clip.SimpleTokenizer(context_length=config["text_cfg"]["context_length"])
    return _take_apart(clip.eval(), tokenizer, name, None, False, config)


def _is_fetchable(name: str, pretrained: str | None) -> bool:
    if pretrained is None:
        return name == TINY or name.startswith("hf-hub:")
    return pretrained != RANDOM and not Path(pretrained).is_file() and not _is_folder(name, pretrained)


def _is_folder(name: str, pretrained: str) -> bool:
    """Whether the weights lie in a folder; a tag of that name goes first."""
    return not get_pretrained_cfg(name, pretrained) and Path(pretrained).is_dir()


def _find_config(name: str, source: str) -> dict[str, Any]:
    try:
        config = open_clip.get_model_config(source)
    except Exception as error:
        raise RuntimeError(_fetch_advice(name, None, error)) from error
    if config is None:
        raise ValueError(
            f"unknown backbone {name!r}: expected tiny, a name of open_clip.list_models() such as ViT-B-16, "
            "hf-hub:org/repo or local-dir:/path"
        )
    return config


def _weight_options(name: str, config: dict[str, Any], pretrained: str | None) -> dict[str, Any]:
    """open_clip's arguments that make sure of the weights asked for, with the activation they were trained with."""
    own_weights = ":" in name or name == TINY
    if pretrained == RANDOM:
        return {"load_weights": False, "pretrained_text": False}
    if own_weights and pretrained:
        raise ValueError(f"backbone {name!r} brings its own weights; leave pretrained={pretrained!r} out")
    if pretrained is not None and _is_folder(name, pretrained):
        return _weight_options(name, config, RANDOM)
    if own_weights:
        return {"require_pretrained": True}
    if pretrained is None:
        warnings.warn(
            f"{name} has RANDOM weights: no `pretrained` was given (for example pretrained='openai'); "
            f"pretrained='{RANDOM}' says that it is meant",
            stacklevel=4,
        )
        return _weight_options(name, config, RANDOM)
    tag = get_pretrained_cfg(name, pretrained)
    if not tag and not Path(pretrained).is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise ValueError(f"{name} has no weights {pretrained!r}: neither a file, a folder nor one of its tags ({tags})")
    options: dict[str, Any] = {"pretrained": pretrained, "require_pretrained": True}
    if tag and tag.get("quick_gelu") and not config.get("quick_gelu"):
        options["force_quick_gelu"] = True
    return options


def _fetch_advice(name: str, pretrained: str | None, error: Exception) -> str:
    wanted = f"{name}, pretrained={pretrained!r}" if pretrained else name
    tag = get_pretrained_cfg(name, pretrained) if pretrained and ":" not in name else None
    places = [tag[key] for key in ("hf_hub", "url") if tag and tag.get(key)] if tag else [name]
    return (
        f"the weights of {wanted} could not be loaded from {' or '.join(places)}: {error}\n"
        "With a copy on this machine: pretrained=/path/to/weights (.safetensors or .pt of that model, or a folder of "
        "transformers' CLIPModel or SiglipModel), or "
        f"backbone=local-dir:/path (a folder with {_CONFIG_FILE} and {_WEIGHTS_FILE}), "
        "or a filled cache and HF_HUB_OFFLINE=1."
    )


def _take_apart(
    clip: nn.Module,
    tokenizer: Any,
    name: str,
    pretrained: str | None,
    fetchable: bool,
    config: dict[str, Any],
) -> Backbone:
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
        raise ValueError(
            f"backbone {name!r} has a {type(visual).__name__} image tower without ViT blocks; supported: open_clip's "
            "native ViTs (ViT-B-32, ViT-L-14, ... of OpenAI, LAION, DataComp, MetaCLIP) and timm's (SigLIP, PE-Core, "
            "EVA)"
        )
    clip.visual = nn.Identity()
    pixels = getattr(visual, "preprocess_cfg", {})
    mean = tuple(pixels.get("mean", open_clip.OPENAI_DATASET_MEAN))
    std = tuple(pixels.get("std", open_clip.OPENAI_DATASET_STD))
    return Backbone(name, pretrained, fetchable, config, mean, std, vision, blocks, TextTower(clip, tokenizer))
