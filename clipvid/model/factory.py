"""Factory of `VideoCLIP`: the one place where a config becomes modules."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from clipvid import InputError
from clipvid.adapters import Adapter, AdapterConfig, AdapterSpec, BlockInfo, build_adapters, resolve_adapters
from clipvid.backbone import Backbone, load_backbone
from clipvid.model.config import ModelConfig, default_adapter
from clipvid.model.context import ContextTokens
from clipvid.model.encoder import VideoEncoder
from clipvid.model.heads import HEADS, Head
from clipvid.model.pooling import POOLING
from clipvid.model.video_clip import VideoCLIP
from clipvid.registry import suggest

_DEFAULT_ADAPTER = default_adapter()


def create_model(
    backbone: str,
    pretrained: str | None = None,
    adapter: AdapterSpec = _DEFAULT_ADAPTER,
    num_frames: int = 8,
    **options: Any,
) -> VideoCLIP:
    """Build a video model around a CLIP backbone.

    Args:
        backbone: See `ModelConfig`.
        pretrained: See `ModelConfig`.
        adapter: See `ModelConfig`.
        num_frames: See `ModelConfig`.
        options: Other fields of `ModelConfig`, and `labels` and `templates` for `VideoCLIP.set_labels`. With a single
            adapter, its options are accepted too (`create_model("tiny", adapter="ila", norm="group")`).

    Raises:
        InputError: An option is unknown; see also `load_backbone`.
        RunError: See `load_backbone`.
    """
    labels, templates = options.pop("labels", None), options.pop("templates", None)
    if options.get("init_from") is not None:
        raise InputError("init_from is an option of training runs; for a model in memory, call clipvid.hub.start_from")
    fields = {item.name for item in dataclasses.fields(ModelConfig)}
    adapter_fields = {item.name for config in resolve_adapters(adapter).values() for item in dataclasses.fields(config)}
    for key in options.keys() - fields - adapter_fields:
        names = {*fields, *adapter_fields, "labels", "templates"}
        raise InputError(f"unknown option {key!r}{suggest(key, names)}; options: {', '.join(sorted(names))}")
    own = {key: options.pop(key) for key in options.keys() - fields}
    if isinstance(adapter, list):
        if own:
            raise InputError(
                f"{sorted(own)}: with several adapters, pass options in their mappings, {{name: ..., option: ...}}"
            )
    elif own:
        adapter = {"name": adapter, **own} if isinstance(adapter, str) else {**adapter, **own}
    named: dict[str, Any] = {
        "backbone": backbone,
        "pretrained": pretrained,
        "adapter": adapter,
        "num_frames": num_frames,
    }
    return build_model(ModelConfig(**named, **options), labels, templates)


def build_model(
    config: ModelConfig, labels: Sequence[str] | None = None, templates: str | Sequence[str] | None = None
) -> VideoCLIP:
    """Build a new `VideoCLIP` of `config`, with labels if they are given.

    Raises:
        InputError: An option does not fit the tower; see also `load_backbone`.
        RunError: See `load_backbone`.
    """
    backbone = load_backbone(config.backbone, config.pretrained, config.image_size)
    model = assemble_model(backbone, config, len(labels) if labels else None)
    if labels:
        model.set_labels(labels, templates)
    return model


def assemble_model(
    backbone: Backbone, config: ModelConfig, num_classes: int | None = None, base_fingerprint: str | None = None
) -> VideoCLIP:
    """Build a new `VideoCLIP` around a backbone in memory.

    Args:
        backbone: The CLIP model.
        config: The config; its options must fit the tower.
        num_classes: Number of classes K of a head without text, unless its options set it.
        base_fingerprint: See `VideoCLIP`.

    Raises:
        InputError: An option does not fit the tower.
    """
    parts = config.parts
    own = backbone.clone_sharing_weights() if parts.tuning.lora is not None else backbone
    width, embed_dim = own.vision.width, own.vision.embed_dim
    if HEADS[parts.head.name].needs_prefix and own.vision.num_prefix == 0:
        raise InputError(
            f"head {parts.head.name} reads the class token, but {backbone.name} has none; use head: linear"
        )
    model = VideoCLIP(
        backbone,
        config,
        encoder=VideoEncoder(own, _adapters_by_block(own, parts.adapters, config.num_frames)),
        text=own.text,
        pooling=POOLING[parts.pooling.name](parts.pooling.config, embed_dim, config.num_frames),
        head=HEADS[parts.head.name](parts.head.config, width, embed_dim, num_classes),
        context=None if parts.tuning.context is None else ContextTokens(parts.tuning.context, own.text),
        base_fingerprint=base_fingerprint,
    )
    _warn_of_lost_updates(model.encoder, model.head, parts.adapters)
    return model


def _adapters_by_block(
    backbone: Backbone, configs: Mapping[str, AdapterConfig], num_frames: int
) -> list[dict[str, Adapter]]:
    depth = len(backbone.blocks)
    return [
        build_adapters(
            configs,
            index,
            depth,
            BlockInfo(backbone.vision.width, backbone.num_heads, num_frames, block.attn, block.ln_1),
        )
        for index, block in enumerate(backbone.blocks)
    ]


def _warn_of_lost_updates(encoder: VideoEncoder, head: Head, configs: Mapping[str, AdapterConfig]) -> None:
    """Warn about adapters in a last block whose updates the head cannot see, if the block was chosen by its number."""
    if not encoder.tower.pools_prefix or head.needs_patches:
        return
    for name, adapter in encoder.layers[-1].adapters.items():
        is_lost = adapter.place == "after_attention" and not adapter.updates_prefix
        if is_lost and name in configs and not isinstance(configs[name].layers, str):
            warnings.warn(
                f"adapter {name} has no effect in the last block: it changes patches after the attention, and the head "
                "reads only the class token. Choose other layers, or a place before the attention (st_adapter has one)",
                stacklevel=2,
            )
