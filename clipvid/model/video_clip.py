"""`VideoCLIP`, which maps clips and class names to logits.

Shapes: B clips, T frames, N patches, D tower width, E embedding, K classes, L text length, S image side.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from clipvid import InputError, RunError
from clipvid.adapters import AdapterConfig
from clipvid.data.preprocessing import Preprocessing
from clipvid.layers.parts import apply_in_parts
from clipvid.model.config import ModelConfig as ModelConfig
from clipvid.model.context import ContextTokens, label_prompts
from clipvid.model.encoder import EncoderOutput, FrozenFeatures, VideoEncoder
from clipvid.model.heads import CLASSES_AT_ONCE, Head, mean_direction
from clipvid.model.lora import add_lora, lora_parameters, lora_state, merge_lora
from clipvid.model.origin import Origin
from clipvid.model.output import VideoCLIPOutput as VideoCLIPOutput
from clipvid.model.pixels import check_normalized, normalize
from clipvid.model.pooling import Pooling
from clipvid.model.prompts import resolve_templates
from clipvid.model.saving import save_model
from clipvid.model.trainable import TrainableModel
from clipvid.model.tuning import set_trainable

if TYPE_CHECKING:
    from clipvid.backbone import Backbone, TextTower


class VideoCLIP(TrainableModel):
    """CLIP model for clips. Frames are uint8 pixels, or floats normalized by `normalize`.

    `clipvid.model.factory` builds the modules. This class adds LoRA and freezes what `config.tune` does not name.
    `preprocessing` describes the clips of training; it is None if the model was not trained on videos. `origin` is the
    release whose weights the model or its start had, or None.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    label_tokens: Tensor | None
    label_features: Tensor | None
    peft_config: dict[str, Any]  # set by peft with LoRA

    def __init__(
        self,
        backbone: Backbone,
        config: ModelConfig,
        encoder: VideoEncoder,
        text: TextTower,
        pooling: Pooling,
        head: Head,
        context: ContextTokens | None = None,
        base_fingerprint: str | None = None,
    ):
        super().__init__()
        tuning = config.parts.tuning
        self.config, self.backbone = config, backbone
        self.encoder, self.text, self.pooling, self.head, self.context = encoder, text, pooling, head, context
        mean, std = config.pixel_mean or backbone.mean, config.pixel_std or backbone.std
        self.register_buffer("pixel_mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.register_buffer("label_tokens", None, persistent=False)
        self.register_buffer("label_features", None, persistent=False)
        self.label_bias = nn.Parameter(torch.zeros(())) if config.multi_label else None
        self.labels: list[str] = []
        self.templates: tuple[str, ...] = resolve_templates(None)
        self.preprocessing: Preprocessing | None = None
        self.origin: Origin | None = None
        fixed = {id(parameter) for parameter in self.parameters() if not parameter.requires_grad}
        if tuning.lora is not None:
            add_lora(self, self.text, tuning.lora)
        set_trainable(self, backbone, tuning, fixed)
        self._tuned_parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        self._base_fingerprint = base_fingerprint
        if base_fingerprint is None and not tuning.keeps_backbone:
            self._base_fingerprint = backbone.fingerprint()

    @property
    def adapter_configs(self) -> Mapping[str, AdapterConfig]:
        """Options of the adapters by name."""
        return self.config.parts.adapters

    @property
    def video_model(self) -> VideoCLIP:
        """The model itself, see `TrainableModel`."""
        return self

    @property
    def image_size(self) -> int:
        """Side S of the square frames, in pixels."""
        return self.backbone.image_size

    @property
    def num_frames(self) -> int:
        """Number of frames T for which the model was built. Other counts run too."""
        return self.config.num_frames

    def forward(
        self,
        frames: Tensor | FrozenFeatures,
        text: Tensor | None = None,
        trace: bool = False,
        normalized: bool = False,
        patches: bool = True,
    ) -> VideoCLIPOutput:
        """Compute the logits of clips.

        Args:
            frames: [B, T, 3, S, S], uint8 pixels or normalized floats; or their output of `encoder.lower`.
            text: Token ids [K, L] of one prompt per class, instead of the labels.
            trace: Also return the traces of the adapters.
            normalized: Use `frames` as they are, without the check of `normalize`.
            patches: Return `patch_tokens`. Training, which does not read them, saves the time.

        Raises:
            InputError: The frames have another shape, or are floats that cannot be normalized pixels.
            RunError: A text head has neither labels nor text.
        """
        needs_patches = self.head.needs_patches or self.head.needs_prefix
        encoded = self._encode(frames, trace, normalized, patches or needs_patches)
        video = self.pooling(encoded.frame_features)
        if text is not None and not self.head.needs_text:
            raise InputError("text was given, but the model has a linear head, which uses no text")
        classes = None
        if self.head.needs_text:
            classes = self.encode_text(text) if text is not None else self._label_features()
        logits = self.classify(encoded, video, classes)
        return VideoCLIPOutput(
            logits, encoded.losses, video, encoded.frame_features, encoded.patch_tokens, encoded.traces
        )

    def classify(self, encoded: EncoderOutput, video: Tensor, classes: Tensor | None) -> Tensor:
        """Return logits [B, K] of encoded frames, their pooled features [B, E], and text features [K, E] if needed."""
        if self.head.needs_text:
            cosines = self.head(video, encoded.patch_tokens, classes)
            logits = self.text.logit_scale * cosines + self.text.logit_bias
        else:
            logits = self.head(video, encoded.tokens if self.head.needs_prefix else encoded.patch_tokens, None)
        return logits if self.label_bias is None else logits + self.label_bias

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return probabilities float32 [B, K] of logits. With `multi_label`, each class has one by itself."""
        return logits.float().sigmoid() if self.config.multi_label else logits.float().softmax(dim=-1)

    def normalize(self, frames: Tensor) -> Tensor:
        """Return uint8 pixels [B, T, 3, S, S] as normalized floats. Floats are checked and returned unchanged.

        Raises:
            InputError: The type is wrong, or the floats cannot be normalized pixels; see `check_normalized`.
        """
        if frames.dtype == torch.uint8:
            return normalize(frames, self.pixel_mean, self.pixel_std)
        if not frames.is_floating_point():
            raise InputError(f"frames are {frames.dtype}; expected uint8 pixels (0..255) or normalized floats")
        check_normalized(frames, self.pixel_mean, self.pixel_std)
        return frames

    def normalise(self, frames: Tensor) -> Tensor:
        """Call `normalize`. Deprecated."""
        warnings.warn("normalise is deprecated, use normalize", DeprecationWarning, stacklevel=2)
        return self.normalize(frames)

    def encode_video(self, frames: Tensor | FrozenFeatures, normalized: bool = False) -> Tensor:
        """Return video features [B, E] of frames as in `forward`, pooled over time, not normalized."""
        return self.pooling(self._encode(frames, False, normalized, True).frame_features)

    def encode_text(self, text: Sequence[str] | Tensor) -> Tensor:
        """Return text features [K, E], not normalized, of K texts or their token ids [K, L]."""
        tokens = text if isinstance(text, Tensor) else self.text.tokenize(list(text))
        return self.text(tokens.to(self.pixel_mean.device))

    @torch.no_grad()
    def set_labels(self, names: Sequence[str], templates: str | Sequence[str] | None = None) -> None:
        """Set the class names and compute their text features once.

        Args:
            names: K class names.
            templates: A name of `clipvid.model.prompts.TEMPLATES`, or a list of templates with one `{}` each.

        Raises:
            InputError: There are no names, or their number does not fit a linear head.
        """
        if isinstance(names, str):
            raise InputError(f"set_labels expects a list of class names, got the string {names!r}")
        if not names:
            raise InputError("set_labels needs at least one class name")
        if not self.head.needs_text and len(names) != self.head.num_classes:
            kind = self.config.parts.head.name
            raise InputError(f"{len(names)} labels for a {kind} head with {self.head.num_classes} classes")
        self.labels, self.templates = list(names), resolve_templates(templates)
        if self.head.needs_text:
            self.label_tokens = label_prompts(self.text, self.labels, self.templates, self.context).to(
                self.pixel_mean.device
            )
            self.label_features = self._ensemble(self.label_tokens)

    def refresh_labels(self) -> None:
        """Recompute the text features of the labels after loading weights."""
        if self.labels and self.head.needs_text:
            self.set_labels(self.labels, self.templates)

    def trained_state(self) -> dict[str, Tensor]:
        """Return adapters, pooling, head (with buffers) and other trained parameters, by name in `state_dict`."""
        own = self._tuned_parameters + ([] if self.label_bias is None else [self.label_bias])
        return self._named(*self.encoder.adapters(), self.pooling, self.head, parameters=own)

    def temporal_state(self) -> dict[str, Tensor]:
        """Return adapters and pooling with their buffers, by name in `state_dict`."""
        return self._named(*self.encoder.adapters(), self.pooling)

    def saved_state(self) -> dict[str, Tensor]:
        """Return the content of `model.safetensors`: `trained_state` without the weights in `lora/` and `backbone/`."""
        elsewhere = {id(parameter) for parameter in lora_parameters(self)}
        if not self.backbone.is_public:
            elsewhere |= {id(parameter) for parameter in self._backbone_parameters()}
        return {name: tensor for name, tensor in self.trained_state().items() if id(tensor) not in elsewhere}

    def lora_state(self) -> dict[str, Tensor]:
        """Return the content of `lora/adapter_model.safetensors` under peft's names, empty without LoRA."""
        return lora_state(self)

    def merge_lora(self) -> None:
        """Add the low-rank updates of LoRA to the weights. Logits do not change. The backbone is saved with the model.

        Raises:
            InputError: The model has no LoRA.
        """
        if not hasattr(self, "peft_config"):
            raise InputError(f"tune={self.config.tune}: the model has no LoRA to merge")
        self._base_fingerprint = self.base_fingerprint()
        merge_lora(self, self.text)
        self.config = dataclasses.replace(self.config, tune=self.config.parts.tuning.without("lora").record())
        vision, *blocks = self.encoder.image_tower()
        parts: Any = {"vision": vision, "blocks": blocks, "text": self.text}
        self.backbone = dataclasses.replace(self.backbone, is_public=False, **parts)
        self._tuned_parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if self.labels:
            self.set_labels(self.labels, self.templates)

    def keep_trained_backbone(self) -> None:
        """Save the backbone with the model from now on. Call this before loading trained weights into it."""
        self._base_fingerprint = self.base_fingerprint()
        self.backbone.is_public = False

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model folder, see `clipvid.model.saving.save_model`."""
        save_model(self, Path(folder))

    def fingerprint(self) -> str:
        """Return the SHA-256 of the backbone that a saved model is loaded with."""
        return self.base_fingerprint() if self.backbone.is_public else self.backbone.fingerprint()

    def base_fingerprint(self) -> str:
        """Return the SHA-256 of the CLIP model before any training."""
        return self._base_fingerprint or self.backbone.fingerprint()

    @property
    def has_base_backbone(self) -> bool:
        """True if `backbone` is the original CLIP model: neither trained nor merged with LoRA."""
        return self._base_fingerprint is None

    def frozen_depth(self) -> int | None:
        """Return `VideoEncoder.frozen_depth`, with the pooling head of the tower if the head reads no patch tokens."""
        return self.encoder.frozen_depth(with_head=not self.head.needs_patches)

    def frame_depth(self) -> int:
        """Return `VideoEncoder.frame_depth`, with the pooling head of the tower if the head reads no patch tokens."""
        return self.encoder.frame_depth(with_head=not self.head.needs_patches)

    def _encode(self, frames: Tensor | FrozenFeatures, trace: bool, normalized: bool, patches: bool) -> EncoderOutput:
        if isinstance(frames, FrozenFeatures):
            return self.encoder(frames, trace, patches)
        height, width = self.backbone.vision.image_shape
        if frames.ndim != 5 or frames.shape[2:] != (3, height, width):
            raise InputError(f"frames are {list(frames.shape)}; expected [B, T, 3, {height}, {width}]")
        return self.encoder(frames if normalized else self.normalize(frames), trace, patches)

    def _label_features(self) -> Tensor:
        if self.label_features is None or self.label_tokens is None:
            raise RunError("the model has no labels: call set_labels([...]) or pass text=token ids")
        return self._ensemble(self.label_tokens) if self._trains_text() else self.label_features

    def _ensemble(self, tokens: Tensor) -> Tensor:
        """Average the prompts of each class: [K, templates, L] -> [K, E] with mean direction and mean length."""
        if not torch.is_grad_enabled() and len(tokens) > CLASSES_AT_ONCE:
            return apply_in_parts(self._ensemble, tokens, CLASSES_AT_ONCE)
        context = None if self.context is None else self.context.vectors
        return mean_direction(self.text(tokens.flatten(0, 1), context).unflatten(0, tokens.shape[:2]))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VideoCLIP:
        """Store the fingerprint of the frozen backbone before a cast such as `.to(torch.bfloat16)`, see `nn.Module`."""
        weight = next(self.backbone.vision.parameters())
        if self.config.parts.tuning.keeps_backbone and fn(weight.new_zeros(1)).dtype != weight.dtype:
            self.backbone.keep_fingerprint()
        super()._apply(fn, recurse)
        return self

    def _backbone_parameters(self) -> Iterator[nn.Parameter]:
        parts = (self.backbone.vision, *self.backbone.blocks, self.backbone.text)
        return (parameter for part in parts for parameter in part.parameters())

    def _named(self, *modules: nn.Module, parameters: Iterable[Tensor] = ()) -> dict[str, Tensor]:
        """Return all tensors of modules, and parameters, by name in `state_dict`."""
        held = (tensor for module in modules for tensor in (*module.parameters(), *module.buffers()))
        chosen = {id(tensor) for tensor in (*held, *parameters)}
        return {name: tensor for name, tensor in self.state_dict(keep_vars=True).items() if id(tensor) in chosen}

    def _trains_text(self) -> bool:
        parts = (self.text,) if self.context is None else (self.text, self.context)
        return any(parameter.requires_grad for part in parts for parameter in part.parameters())
