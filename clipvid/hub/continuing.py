"""Initialization of training from the weights of a saved model (`model.init_from`)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from clipvid import InputError
from clipvid.backbone import Backbone
from clipvid.backbone.state_dicts import load_strictly, mismatches
from clipvid.hub.loading import from_pretrained
from clipvid.model.heads import LinearHead
from clipvid.model.video_clip import VideoCLIP


class Started(NamedTuple):
    """Loaded and new parts of a model.

    Attributes:
        loaded: Parts from the saved model.
        new: Parts with fresh weights.
    """

    loaded: list[str]
    new: list[str]

    def __str__(self) -> str:
        return f"loaded {', '.join(self.loaded) or 'nothing'}; new: {', '.join(self.new) or 'nothing'}"


def start_from(model: VideoCLIP, source: str | Path) -> Started:
    """Copy the weights of a saved model into `model`, for the parts that both have.

    Trained towers are copied and then saved with the model. LoRA is continued if both models have the same, otherwise
    it is merged into the weights. Rows of a linear head are copied by class name.

    Args:
        model: Model built from the same CLIP.
        source: Model folder or Hub repository.

    Returns:
        The loaded and the new parts.

    Raises:
        InputError: CLIP, adapters or pooling differ. The message has the difference. See also `from_pretrained`.
    """
    saved = from_pretrained(source)
    expected, fingerprint = model.base_fingerprint(), saved.base_fingerprint()
    if fingerprint != expected:
        raise InputError(
            f"init_from {source}: it is made from another backbone ({saved.backbone.name}, SHA-256 of weights "
            f"{fingerprint[:12]}...) than the model ({model.backbone.name}, {expected[:12]}...)"
        )
    if not (torch.equal(model.pixel_mean, saved.pixel_mean) and torch.equal(model.pixel_std, saved.pixel_std)):
        warnings.warn(
            f"init_from {source}: it was trained on pixels normalized with mean {saved.pixel_mean.flatten().tolist()} "
            f"and std {saved.pixel_std.flatten().tolist()}, which this model does not use. Set model.pixel_mean and "
            "model.pixel_std unless that is intended",
            stacklevel=2,
        )
    model.origin = saved.origin
    started = Started([], [])
    _copy_towers(model, saved, source, started)
    _copy_temporal(model, saved, source, started)
    _copy_context(model, saved, started)
    _copy_head(model, saved, started)
    if model.label_bias is not None and saved.label_bias is not None:
        model.label_bias.data.copy_(saved.label_bias)
        started.loaded.append("bias of the labels")
    model.refresh_labels()
    return started


def _copy_towers(model: VideoCLIP, saved: VideoCLIP, source: str | Path, started: Started) -> None:
    """Copy LoRA and trained towers."""
    lora, saved_lora = model.lora_state(), saved.lora_state()
    if saved_lora and lora and not mismatches(lora, saved_lora):
        load_strictly(lora, saved_lora)
        started.loaded.append("LoRA")
    else:
        if saved_lora:
            saved.merge_lora()
        if lora:
            started.new.append("LoRA")
    if saved.has_base_backbone:
        return
    lora_config = model.config.parts.tuning.lora
    if lora_config is not None and "text" in lora_config.towers:
        raise InputError(f"init_from {source}: LoRA in the text tower cannot start from its trained towers")
    model.keep_trained_backbone()
    load_strictly(_towers(model.backbone).state_dict(keep_vars=True), _towers(saved.backbone).state_dict())
    started.loaded.append("LoRA, added to the towers" if saved_lora else "trained towers")


def _copy_temporal(model: VideoCLIP, saved: VideoCLIP, source: str | Path, started: Started) -> None:
    """Copy adapters and pooling. A part is new if the saved model does not have it."""
    own, other = model.temporal_state(), saved.temporal_state()
    for part in ("adapters", "pooling"):
        mine, theirs = (_part(state, part) for state in (own, other))
        if not theirs:
            started.new.extend([part] if mine else [])
            continue
        try:
            load_strictly(mine, theirs)
        except ValueError as error:
            raise InputError(f"init_from {source}: {error}. Use its model.adapter and model.pooling") from error
        started.loaded.append(part)


def _part(state: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name.startswith("pooling.") == (part == "pooling")}


def _copy_context(model: VideoCLIP, saved: VideoCLIP, started: Started) -> None:
    if model.context is None:
        return
    if saved.context is None or saved.context.vectors.shape != model.context.vectors.shape:
        started.new.append("context tokens")
        return
    load_strictly(model.context.state_dict(keep_vars=True), saved.context.state_dict())
    started.loaded.append("context tokens")


def _copy_head(model: VideoCLIP, saved: VideoCLIP, started: Started) -> None:
    """Copy the head. For a linear head, copy the rows of common classes by name."""
    own, other = model.head, saved.head
    if isinstance(own, LinearHead) and isinstance(other, LinearHead):
        kept = {name: saved.labels.index(name) for name in model.labels if name in saved.labels}
        load_strictly(own.norm.state_dict(keep_vars=True), other.norm.state_dict())
        with torch.no_grad():
            for row, name in enumerate(model.labels):
                if name in kept:
                    own.linear.weight[row] = other.linear.weight[kept[name]]
                    own.linear.bias[row] = other.linear.bias[kept[name]]
        fresh = [name for name in model.labels if name not in kept]
        own.is_trained = bool(kept) and not fresh
        if kept:
            started.loaded.append(f"head rows of {len(kept)} classes")
        if fresh or not model.labels:
            started.new.append(f"head rows of {len(fresh) or own.num_classes} classes ({_listed(fresh)})")
        return
    state = own.state_dict(keep_vars=True)
    if not state:
        return
    if type(own) is not type(other) or mismatches(state, other.state_dict()):
        started.new.append("head")
        return
    load_strictly(state, other.state_dict())
    own.is_trained = True
    started.loaded.append("head")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "unnamed"


def _towers(backbone: Backbone) -> nn.ModuleDict:
    parts: dict[str, Any] = {"vision": backbone.vision, "blocks": nn.ModuleList(backbone.blocks), "text": backbone.text}
    return nn.ModuleDict(parts)
