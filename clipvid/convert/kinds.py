"""Kinds of checkpoints by name: their converters, their marks in a file, and the license of the release."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from clipvid import InputError
from clipvid.backbone import Backbone
from clipvid.convert.action_clip import FUSION, from_action_clip
from clipvid.convert.ila import from_ila
from clipvid.convert.mote import from_mote
from clipvid.convert.st_adapter import from_st_adapter
from clipvid.convert.vifi_clip import from_vifi_clip
from clipvid.convert.xclip import from_xclip
from clipvid.model.origin import Origin
from clipvid.model.video_clip import VideoCLIP
from clipvid.registry import suggest

AUTO = "auto"


@dataclass(frozen=True)
class Kind:
    """Kind of released checkpoints.

    Attributes:
        convert: Function from checkpoint, number of frames and base CLIP to the model.
        marks: Parts of tensor names, all of which occur in files of this kind.
        without: Part of tensor names that does not occur.
        origin: Source of the weights.
    """

    convert: Callable[[Mapping[str, Any], int | None, Backbone | None], VideoCLIP]
    marks: tuple[str, ...]
    origin: Origin
    without: str | None = None

    def matches(self, names: Collection[str]) -> bool:
        """Return True if the tensor names are those of this kind."""
        marked = all(any(mark in name for name in names) for mark in self.marks)
        return marked and not any(self.without is not None and self.without in name for name in names)


KINDS: dict[str, Kind] = {
    "ila": Kind(
        lambda state, frames, base: from_ila(state, frames),
        ("message_attn.conv.weight",),
        Origin("ila", "ILA", "unknown", "Tu et al., ICCV 2023, https://arxiv.org/abs/2304.10465"),
    ),
    "xclip": Kind(
        lambda state, frames, base: from_xclip(state, frames),
        ("message_attn.in_proj_weight",),
        Origin("xclip", "X-CLIP", "MIT", "Ni et al., ECCV 2022, https://arxiv.org/abs/2208.02816"),
    ),
    "vifi_clip": Kind(
        from_vifi_clip,
        ("image_encoder.conv1.weight", "text_encoder.ln_final.weight"),
        Origin("vifi_clip", "ViFi-CLIP", "unknown", "Rasheed et al., CVPR 2023, https://arxiv.org/abs/2212.03640"),
    ),
    "action_clip": Kind(
        lambda state, frames, base: from_action_clip(state, frames),
        (f"{FUSION}.", "frame_position_embeddings.weight", ".mlp.c_fc."),
        Origin("action_clip", "ActionCLIP", "MIT", "Wang et al., 2021, https://arxiv.org/abs/2109.08472"),
        without=".mlp.fc_up.",
    ),
    "mote": Kind(
        lambda state, frames, base: from_mote(state, frames),
        (f"{FUSION}.", ".mlp.fc_up.", "spe_cls_feature"),
        Origin("mote", "MoTE", "Apache-2.0", "Zhu et al., NeurIPS 2024, https://arxiv.org/abs/2410.10589"),
    ),
    "st_adapter": Kind(
        lambda state, frames, base: from_st_adapter(state, frames),
        (".adapter_pre_", ".conv.weight"),
        Origin("st_adapter", "ST-Adapter", "MIT", "Pan et al., NeurIPS 2022, https://arxiv.org/abs/2206.13559"),
    ),
}


def find_kind(checkpoint: Mapping[str, Any]) -> str:
    """Return the kind of a checkpoint by the names of its tensors.

    Raises:
        InputError: The names are those of no kind.
    """
    names = _names(checkpoint)
    kinds = [name for name, kind in KINDS.items() if kind.matches(names)]
    if len(kinds) != 1:
        raise InputError(
            f"the {len(names)} names in the checkpoint are those of no known kind ({', '.join(KINDS)}); they begin "
            f"with {', '.join(sorted(names)[:3]) or 'nothing'}"
        )
    return kinds[0]


def convert_checkpoint(
    kind: str, checkpoint: Mapping[str, Any], num_frames: int | None = None, base: Backbone | None = None
) -> VideoCLIP:
    """Build the model of a checkpoint, with its origin.

    Args:
        kind: A name of `KINDS`, or `auto` to recognize it by the names of the tensors.
        checkpoint: Content of the file.
        num_frames: Frames per clip. X-CLIP and ILA store it.
        base: CLIP that the checkpoint was trained from, for kinds whose files lack a part of it (ViFi-CLIP).

    Raises:
        InputError: The kind is unknown or not that of the file, or tensors are missing or have no place.
    """
    if kind != AUTO and kind not in KINDS:
        raise InputError(f"unknown kind {kind!r}{suggest(kind, [*KINDS, AUTO])}: expected auto, {', '.join(KINDS)}")
    name = find_kind(checkpoint) if kind == AUTO else kind
    model = KINDS[name].convert(checkpoint, num_frames, base)
    model.origin = KINDS[name].origin
    return model


def _names(checkpoint: Mapping[str, Any]) -> list[str]:
    """Return the names of the tensors in a checkpoint and in its state dicts."""
    names: list[str] = []
    for key, value in checkpoint.items():
        names += [f"{key}.{inner}" for inner in value] if isinstance(value, Mapping) else [str(key)]
    return names
