"""From names and options to a `VideoCLIP`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from clipvid import InputError
from clipvid.adapters import AdapterSpec, resolve_adapters
from clipvid.backbone import load_backbone
from clipvid.model.video_clip import ModelConfig, VideoCLIP
from clipvid.registry import suggest


def create_model(
    backbone: str,
    pretrained: str | None = None,
    adapter: AdapterSpec = "ila",
    num_frames: int = 8,
    **options: Any,
) -> VideoCLIP:
    """A video model around a CLIP backbone.

    Args:
        backbone, pretrained, adapter, num_frames: see `ModelConfig`.
        options: other fields of `ModelConfig`; `labels` and `templates` for `VideoCLIP.set_labels`; anything else goes
            to the adapter's config when one adapter is asked for (`create_model("tiny", adapter="ila", norm="group")`).

    Raises:
        ValueError, RuntimeError: see `load_backbone`; unknown options are refused by name.
    """
    labels, templates = options.pop("labels", None), options.pop("templates", None)
    if options.get("init_from") is not None:
        raise InputError("init_from is an option of runs; for a model in memory, call clipvid.hub.start_from on it")
    fields = {item.name for item in dataclasses.fields(ModelConfig)}
    adapter_fields = {item.name for config in resolve_adapters(adapter).values() for item in dataclasses.fields(config)}
    for key in options.keys() - fields - adapter_fields:
        known = {*fields, *adapter_fields, "labels", "templates"}
        raise InputError(f"unknown option {key!r}{suggest(key, known)}; options: {', '.join(sorted(known))}")
    own = {key: options.pop(key) for key in options.keys() - fields}
    if isinstance(adapter, list):
        if own:
            raise InputError(f"{sorted(own)}: with several adapters, options go into their mappings")
    elif own:
        adapter = {"name": adapter, **own} if isinstance(adapter, str) else {**adapter, **own}
    given: dict[str, Any] = {
        "backbone": backbone,
        "pretrained": pretrained,
        "adapter": adapter,
        "num_frames": num_frames,
    }
    return build_model(ModelConfig(**given, **options), labels, templates)


def build_model(
    config: ModelConfig, labels: Sequence[str] | None = None, templates: str | Sequence[str] | None = None
) -> VideoCLIP:
    """A fresh `VideoCLIP` of `config`, with labels where they are given."""
    resolve_adapters(config.adapter)
    backbone = load_backbone(config.backbone, config.pretrained, config.image_size)
    model = VideoCLIP(backbone, config, len(labels) if labels else None)
    if labels:
        model.set_labels(labels, templates)
    return model
