"""CLIP towers through open_clip: the only file that imports it.

A tower is taken apart into what a video encoder needs: patch embedding, blocks in two halves (attention, MLP) with
the residual stream between them, and the tower's own pooling head. Fused attention is replaced once by q, k, v and
out linears around `scaled_dot_product_attention`; state dicts map both ways.

Shapes: M images, P prefix tokens, N = H x W patches, D width, E embedding, K texts, L text length.
"""

from __future__ import annotations

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
from open_clip.transformer import CustomResidualAttentionBlock, ResidualAttentionBlock, VisionTransformer
from safetensors.torch import save_file
from torch import Tensor, nn

from clipvid.attention import SelfAttention, fuse_projection

TINY = "tiny"
RANDOM = "random"
NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 1, "heads": 1, "layers": 1}
_TINY_FOLDER = Path(__file__).parent / "weights" / TINY
_CONFIG_FILE = "open_clip_config.json"
_WEIGHTS_FILE = "open_clip_model.safetensors"


class Block(nn.Module):
    """A transformer block of a native open_clip tower, in halves. Both return what is added to the stream."""

    def __init__(self, source: ResidualAttentionBlock | CustomResidualAttentionBlock):
        super().__init__()
        self.ln_1, self.ls_1 = source.ln_1, source.ls_1
        fused = isinstance(source.attn, nn.MultiheadAttention)
        self.attn: Any = SelfAttention.from_fused(source.attn) if fused else source.attn
        self.ln_attn = getattr(source, "ln_attn", nn.Identity())
        self.ln_2, self.mlp, self.ls_2 = source.ln_2, source.mlp, source.ls_2

    def attention(self, x: Tensor) -> Tensor:
        """[M, P+N, D] -> update [M, P+N, D]."""
        return self.ls_1(self.ln_attn(self.attn(self.ln_1(x))))

    def feed_forward(self, x: Tensor) -> Tensor:
        """[M, P+N, D] -> update [M, P+N, D]."""
        return self.ls_2(self.mlp(self.ln_2(x)))


class VisionTower(nn.Module):
    """What stands before and after the blocks of a native open_clip ViT: embedding and pooling head."""

    num_prefix = 1

    visual: Any

    def __init__(self, visual: VisionTransformer):
        super().__init__()
        self.visual = visual
        self.width: int = visual.transformer.width
        self.embed_dim: int = visual.output_dim
        self.grid: tuple[int, int] = visual.grid_size
        size = visual.image_size
        self.image_shape: tuple[int, int] = (size, size) if isinstance(size, int) else tuple(size)

    def embed(self, images: Tensor) -> Tensor:
        """Normalised images [M, 3, S, S] -> tokens [M, P+N, D]."""
        return self.visual._embeds(images)

    def head(self, tokens: Tensor) -> Tensor:
        """Tokens of the last block [M, P+N, D] -> image features [M, E], not normalised."""
        pooled, _ = self.visual._pool(tokens)
        return pooled if self.visual.proj is None else pooled @ self.visual.proj


class TextTower(nn.Module):
    """The CLIP text tower with its tokenizer and the learned scale (and bias) of the logits."""

    clip: Any
    tokenizer: Any

    def __init__(self, clip: nn.Module, tokenizer: Any):
        super().__init__()
        self.clip = clip
        self.tokenizer = tokenizer

    @property
    def present(self) -> bool:
        """False for a checkpoint that came without text tower, see `NO_TEXT`."""
        return getattr(self.clip, "vocab_size", None) != NO_TEXT["vocab_size"]

    @property
    def logit_scale(self) -> Tensor:
        """Scalar that multiplies cosines."""
        return self.clip.logit_scale.exp()

    @property
    def logit_bias(self) -> Tensor | float:
        """Scalar added to the logits (SigLIP); 0 elsewhere."""
        bias = getattr(self.clip, "logit_bias", None)
        return 0.0 if bias is None else bias

    def tokenize(self, texts: list[str]) -> Tensor:
        """K texts -> token ids int64 [K, L]."""
        return self.tokenizer(texts)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids [K, L] -> text features [K, E], not normalised."""
        if not self.present:
            raise RuntimeError("this model has no text tower (it was converted from a checkpoint without one)")
        return self.clip.encode_text(tokens, normalize=False)


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
    vision: VisionTower
    blocks: list[Block]
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

    def open_clip_state_dict(self) -> dict[str, Tensor]:
        """All weights under open_clip's names, attention fused again."""
        state = {key: value for key, value in self.text.clip.state_dict().items() if not key.startswith("visual.")}
        state |= {f"visual.{key}": value for key, value in self.vision.visual.state_dict().items()}
        for index, block in enumerate(self.blocks):
            prefix = f"visual.transformer.resblocks.{index}."
            state |= {prefix + key: value for key, value in fuse_projection(block.state_dict()).items()}
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
        pretrained: tag of `open_clip.list_pretrained()`, a file, or `random`; None leaves a named tower random, with
            a warning.
        image_size: side in pixels, when it is not the pretrained one; position embeddings are resampled.

    Raises:
        ValueError: unknown name or tag, or a tower that is no native ViT.
        RuntimeError: weights that cannot be fetched or do not fit; says where they were looked for.
    """
    source = f"local-dir:{_TINY_FOLDER}" if name == TINY else name
    config = _find_config(name, source)
    options = _weight_options(name, config, pretrained)
    if pretrained == RANDOM:
        logging.disable(logging.WARNING)  # open_clip warns of the random weights that were asked for
    try:
        clip = open_clip.create_model(source, force_patch_dropout=0.0, **options)
    except Exception as error:
        raise RuntimeError(_fetch_advice(name, pretrained, error)) from error
    finally:
        logging.disable(logging.NOTSET)
    config |= {"quick_gelu": options["force_quick_gelu"]} if options.get("force_quick_gelu") else {}
    if image_size is not None:
        config["vision_cfg"]["image_size"] = image_size
        if isinstance(clip.visual, VisionTransformer):
            _resize(clip.visual, image_size)
    tokenizer = open_clip.get_tokenizer(source)
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
    return pretrained != RANDOM and not Path(pretrained).is_file()


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
        raise ValueError(f"{name} has no weights {pretrained!r}: neither a file nor one of its tags ({tags})")
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
        "With a copy on this machine: pretrained=/path/to/weights (.safetensors or .pt of that model), or "
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
    if not isinstance(visual, VisionTransformer):
        raise ValueError(
            f"backbone {name!r} has a {type(visual).__name__} image tower; supported: open_clip's native "
            "VisionTransformer (ViT-B-32, ViT-B-16, ViT-L-14, ... of OpenAI, LAION, DataComp, MetaCLIP)"
        )
    visual.output_tokens = False
    vision = VisionTower(visual)
    blocks = [Block(source) for source in visual.transformer.resblocks]
    visual.transformer = nn.Identity()
    clip.visual = nn.Identity()
    pixels = getattr(visual, "preprocess_cfg", {})
    mean = tuple(pixels.get("mean", open_clip.OPENAI_DATASET_MEAN))
    std = tuple(pixels.get("std", open_clip.OPENAI_DATASET_STD))
    return Backbone(name, pretrained, fetchable, config, mean, std, vision, blocks, TextTower(clip, tokenizer))
