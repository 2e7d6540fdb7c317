"""From samples to a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import default_collate

SEPARATE = ("failures", "frames", "features", "key", "facts")


def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the batch of some samples.

    Returns:
        One tensor for each figure of the samples, and `failures` of all. `frames` and `features` contain the clips that
        have them, in order. If features are stored, `is_stored` [B] is True for clips with `features`. `keys` and
        `facts` are then lists, with None for clips that are stored already or not to be stored.
    """
    batch = default_collate([{name: item[name] for name in item if name not in SEPARATE} for item in items])
    for name in ("frames", "features"):
        clips = [item[name] for item in items if name in item]
        if clips:
            batch[name] = default_collate(clips)
    if any("features" in item or "key" in item for item in items):
        batch["is_stored"] = torch.tensor(["features" in item for item in items])
        batch |= {"keys": [item.get("key") for item in items], "facts": [item.get("facts") for item in items]}
    return {**batch, "failures": [failure for item in items for failure in item.get("failures", [])]}
