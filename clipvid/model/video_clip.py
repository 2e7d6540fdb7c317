"""`VideoCLIP`: clips and class names in, logits out.

Shapes: B clips, T frames, N patches, D tower width, E embedding, K classes, L text length, S image side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from peft import get_peft_model_state_dict
from torch import Tensor, nn

from clipvid import InputError, RunError
from clipvid.adapters import AdapterSpec, resolve_adapters
from clipvid.backbone import Backbone
from clipvid.model.context import ContextTokens
from clipvid.model.encoder import EncoderOutput, Traces, VideoEncoder
from clipvid.model.heads import HEADS
from clipvid.model.lora import add_lora, lora_parameters, merge_lora
from clipvid.model.pooling import POOLING
from clipvid.model.prompts import TEMPLATES, class_prompts, resolve_templates
from clipvid.model.saving import save_model
from clipvid.model.tuning import choose_trained, resolve_tuning, tuning_record
from clipvid.registry import Choice


@dataclass(frozen=True)
class ModelConfig:
    """What a `VideoCLIP` is made of.

    backbone, pretrained, image_size: see `clipvid.backbone.load_backbone`.
    adapter: a name of `clipvid.ADAPTERS`, `{"name": ..., options}`, or a list of these.
    num_frames: frames T per clip that the model is made for.
    pooling: `mean` or `mit` (`{"name": "mit", "layers": 1}`) over frames.
    head: `text` (`{"name": "text", "prompt_layers": 2}` for video-specific prompts) or `linear`.
    tune: what is trained, any of `adapters`, `head` (with pooling), `lora`, `layernorm`, `partial`, `full` (image
        tower), `coop`, `text` (text tower), by name or with options (`{"name": "lora", "rank": 16}`); see
        `clipvid.model.tuning`.
    init_from: a model folder, or such a repository on the Hub, whose adapters and pooling training starts from; no
        part of a saved model.
    """

    backbone: str = "tiny"
    pretrained: str | None = None
    adapter: AdapterSpec = "ila"
    num_frames: int = 8
    image_size: int | None = None
    pooling: Choice = "mean"
    head: Choice = "text"
    tune: list[Choice] = field(default_factory=lambda: ["adapters", "head"])
    init_from: str | None = None

    def __post_init__(self) -> None:
        resolve_tuning(self.tune)
        if self.num_frames < 1:
            raise InputError(f"num_frames={self.num_frames}: a clip has at least one frame")


class VideoCLIPOutput(NamedTuple):
    """What `VideoCLIP.forward` returns.

    logits: [B, K]. losses: named scalar auxiliary losses, to be added to the objective.
    video_features: [B, E], pooled, not normalised. frame_features: [B, T, E]. patch_tokens: [B, T, N, D].
    traces: what the adapters show of themselves, when asked for.
    """

    logits: Tensor
    losses: dict[str, Tensor]
    video_features: Tensor
    frame_features: Tensor
    patch_tokens: Tensor
    traces: Traces


class VideoCLIP(nn.Module):
    """A CLIP model that reads clips. Frames are uint8 pixels, normalised here, or floats already normalised."""

    pixel_mean: Tensor
    pixel_std: Tensor
    label_tokens: Tensor | None
    label_features: Tensor | None
    peft_config: dict[str, Any]  # set by peft where there is LoRA

    def __init__(self, backbone: Backbone, config: ModelConfig, num_classes: int | None = None):
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.adapter_configs = resolve_adapters(config.adapter)
        width, embed_dim = backbone.vision.width, backbone.vision.embed_dim
        pool_name, pool_config = POOLING.resolve(config.pooling)
        head_name, head_config = HEADS.resolve(config.head)
        tuning = resolve_tuning(config.tune)
        own = backbone.shared() if "lora" in tuning else backbone
        self.encoder = VideoEncoder(own, self.adapter_configs, config.num_frames)
        self.text = own.text
        self.pooling = POOLING[pool_name](pool_config, embed_dim, config.num_frames)
        self.head = HEADS[head_name](head_config, width, embed_dim, num_classes)
        self.context = ContextTokens(tuning["coop"], self.text) if "coop" in tuning else None
        self.register_buffer("pixel_mean", torch.tensor(backbone.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(backbone.std).view(3, 1, 1), persistent=False)
        self.register_buffer("label_tokens", None, persistent=False)
        self.register_buffer("label_features", None, persistent=False)
        self.labels: list[str] = []
        self.templates: tuple[str, ...] = resolve_templates(None)
        self.preprocessing: dict[str, Any] = {}
        fixed = {id(parameter) for parameter in self.parameters() if not parameter.requires_grad}
        if "lora" in tuning:
            add_lora(self, self.text, tuning["lora"])
        choose_trained(self, backbone, tuning, fixed)
        if self._trains_text() and not self.head.needs_text:
            raise InputError(f"tune={config.tune}: a linear head does not use the text tower; leave it frozen")
        self._tuned_parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        self._base_fingerprint = backbone.fingerprint() if self._tunes_backbone() and backbone.fetchable else None

    @property
    def image_size(self) -> int:
        """Side S of the square frames, in pixels."""
        return self.backbone.image_size

    @property
    def num_frames(self) -> int:
        """Frames T that the model was made for; other counts run too."""
        return self.config.num_frames

    def forward(self, frames: Tensor, text: Tensor | None = None, trace: bool = False) -> VideoCLIPOutput:
        """Logits of clips.

        Args:
            frames: [B, T, 3, S, S], uint8 or normalised floats.
            text: token ids [K, L] of one prompt per class, in place of the labels.
            trace: also return what the adapters show of themselves.

        Raises:
            RuntimeError: a text head without labels or text.
        """
        encoded = self._encode(frames, trace)
        video = self.pooling(encoded.frame_features)
        if text is not None and not self.head.needs_text:
            raise InputError("text was given to a model whose linear head knows no text")
        if self.head.needs_text:
            classes = self.encode_text(text) if text is not None else self._label_features()
            cosines = self.head(video, encoded.patch_tokens, classes)
            logits = self.text.logit_scale * cosines + self.text.logit_bias
        else:
            logits = self.head(video, encoded.patch_tokens, None)
        return VideoCLIPOutput(
            logits, encoded.losses, video, encoded.frame_features, encoded.patch_tokens, encoded.traces
        )

    def normalise(self, frames: Tensor) -> Tensor:
        """uint8 pixels -> floats as the backbone wants them; floats are taken to be that already."""
        if frames.is_floating_point():
            return frames
        return ((frames / 255 - self.pixel_mean) / self.pixel_std).to(self.pixel_mean.dtype)

    def encode_video(self, frames: Tensor) -> Tensor:
        """Frames [B, T, 3, S, S] -> video features [B, E], pooled over time, not normalised."""
        return self.pooling(self._encode(frames, False).frame_features)

    def encode_text(self, text: Sequence[str] | Tensor) -> Tensor:
        """K texts, or their token ids [K, L] -> text features [K, E], not normalised."""
        tokens = text if isinstance(text, Tensor) else self.text.tokenize(list(text))
        return self.text(tokens.to(self.pixel_mean.device))

    @torch.no_grad()
    def set_labels(self, names: Sequence[str], templates: str | Sequence[str] | None = None) -> None:
        """Name the classes; their text features are computed once, here.

        Args:
            names: K class names.
            templates: a set of `clipvid.model.prompts.TEMPLATES` by name, or a list of templates with one `{}` each.

        Raises:
            ValueError: no names, or as many as do not fit a linear head.
        """
        if isinstance(names, str):
            raise InputError(f"set_labels expects a list of class names, got the string {names!r}")
        if not names:
            raise InputError("set_labels needs at least one class name")
        if not self.head.needs_text and len(names) != self.head.linear.out_features:
            raise InputError(f"{len(names)} labels for a linear head with {self.head.linear.out_features} classes")
        self.labels, self.templates = list(names), resolve_templates(templates)
        if self.head.needs_text:
            self.label_tokens = self._label_prompts().to(self.pixel_mean.device)
            self.label_features = self._ensemble(self.label_tokens)

    def _label_prompts(self) -> Tensor:
        """Token ids [K, templates, L]."""
        if self.context is None:
            prompts = class_prompts(self.labels, self.templates)
            return torch.stack([self.text.tokenize(texts) for texts in prompts])
        if self.templates not in (TEMPLATES["none"], TEMPLATES["single"]):
            raise InputError(
                f"templates={list(self.templates)}: `coop` learns the context of a class name; leave them out"
            )
        return self.context.tokenize(self.text, self.labels)

    def trained_state(self) -> dict[str, Tensor]:
        """Adapters, pooling and head with their buffers, and all else that `tune` trains, by name in `state_dict`."""
        return self._named((*self._temporal_tensors(), *_tensors(self.head), *self._tuned_parameters))

    def temporal_state(self) -> dict[str, Tensor]:
        """Adapters and pooling with their buffers, by name in `state_dict`."""
        return self._named(self._temporal_tensors())

    def saved_state(self) -> dict[str, Tensor]:
        """What `model.safetensors` holds: `trained_state` without what the folder's `lora/` and `backbone/` hold."""
        elsewhere = {id(parameter) for parameter in lora_parameters(self)}
        if not self.backbone.fetchable:
            elsewhere |= {id(parameter) for parameter in self._backbone_parameters()}
        return {name: tensor for name, tensor in self.trained_state().items() if id(tensor) not in elsewhere}

    def lora_state(self) -> dict[str, Tensor]:
        """What `lora/adapter_model.safetensors` holds, under peft's names; empty without LoRA."""
        if not hasattr(self, "peft_config"):
            return {}
        return {f"base_model.model.{name}": value for name, value in get_peft_model_state_dict(self).items()}

    def merge_lora(self) -> None:
        """Add the low-rank updates to the weights beside which they stand: the same logits, no cost of their own, and
        a backbone that is saved with the model.

        Raises:
            ValueError: the model has no LoRA.
        """
        if not hasattr(self, "peft_config"):
            raise InputError(f"tune={self.config.tune}: there is no LoRA to merge")
        merge_lora(self, self.text)
        tuning = {name: part for name, part in resolve_tuning(self.config.tune).items() if name != "lora"}
        self.config = dataclasses.replace(self.config, tune=tuning_record(tuning))
        vision, *blocks = self.encoder.image_tower()
        parts: Any = {"vision": vision, "blocks": blocks, "text": self.text}
        self.backbone = dataclasses.replace(self.backbone, fetchable=False, **parts)
        self._base_fingerprint = None
        self._tuned_parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if self.labels:
            self.set_labels(self.labels, self.templates)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model folder: config, what was trained, how frames are prepared, and the backbone's weights where
        its name alone does not bring them back."""
        save_model(self, Path(folder))

    def fingerprint(self) -> str:
        """SHA-256 of the backbone as it was before training."""
        return self._base_fingerprint or self.backbone.fingerprint()

    def _encode(self, frames: Tensor, trace: bool) -> EncoderOutput:
        height, width = self.backbone.vision.image_shape
        if frames.ndim != 5 or frames.shape[2:] != (3, height, width):
            raise InputError(f"frames are {list(frames.shape)}; expected [B, T, 3, {height}, {width}]")
        return self.encoder(self.normalise(frames), trace)

    def _label_features(self) -> Tensor:
        if self.label_features is None or self.label_tokens is None:
            raise RunError("the model has no labels: call set_labels([...]) or pass text=token ids")
        return self._ensemble(self.label_tokens) if self._trains_text() else self.label_features

    def _ensemble(self, tokens: Tensor) -> Tensor:
        """Token ids [K, templates, L] -> [K, E]: the mean direction of each class's prompts, at their mean length."""
        context = None if self.context is None else self.context.vectors
        features = self.text(tokens.flatten(0, 1), context).unflatten(0, tokens.shape[:2])
        if tokens.shape[1] == 1:
            return features[:, 0]
        direction = F.normalize(F.normalize(features, dim=-1).mean(dim=1), dim=-1)
        return direction * features.norm(dim=-1).mean(dim=1, keepdim=True)

    def _backbone_parameters(self) -> Iterator[nn.Parameter]:
        for module in (self.backbone.vision, *self.backbone.blocks, self.backbone.text):
            yield from module.parameters()

    def _temporal_tensors(self) -> list[Tensor]:
        return [tensor for module in (*self.encoder.adapters(), self.pooling) for tensor in _tensors(module)]

    def _named(self, tensors: Iterable[Tensor]) -> dict[str, Tensor]:
        wanted = {id(tensor) for tensor in tensors}
        return {name: tensor for name, tensor in self.state_dict(keep_vars=True).items() if id(tensor) in wanted}

    def _trains_text(self) -> bool:
        parts = (self.text,) if self.context is None else (self.text, self.context)
        return any(parameter.requires_grad for part in parts for parameter in part.parameters())

    def _tunes_backbone(self) -> bool:
        return any(parameter.requires_grad for parameter in self._backbone_parameters())


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
