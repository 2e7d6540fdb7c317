"""Temporal adapters by name.

To add one, write a file in this folder and add a line to `ADAPTERS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipvid.adapters.ata import ATA
from clipvid.adapters.base import Adapter, AdapterConfig, AdapterOutput, BlockInfo, select_layers
from clipvid.adapters.gta import GTA
from clipvid.adapters.ila import ILA
from clipvid.adapters.shift import Shift
from clipvid.adapters.sifa import SIFA
from clipvid.adapters.st_adapter import STAdapter
from clipvid.adapters.temporal_attention import TemporalAttention
from clipvid.adapters.temporal_conv import TemporalConv
from clipvid.adapters.xclip import XCLIP
from clipvid.registry import Choice, Registry

ADAPTERS: Registry = Registry(
    "adapter",
    {
        "none": Adapter,
        "ila": ILA,
        "ata": ATA,
        "attention": TemporalAttention,
        "gta": GTA,
        "shift": Shift,
        "sifa": SIFA,
        "st_adapter": STAdapter,
        "xclip": XCLIP,
        "temporal_conv": TemporalConv,
    },
    group="clipvid.adapters",
    presets={
        "sifa_transformer": [
            {"name": "sifa", "layers": "even", "deformable": False},
            {"name": "temporal_conv", "layers": "odd"},
        ],
    },
)

AdapterSpec = Choice | list[Choice]


def resolve_adapters(spec: AdapterSpec) -> dict[str, AdapterConfig]:
    """Return configs by name, in the order of the list, without `none`. A preset is replaced by its adapters.

    Raises:
        InputError: An adapter or option is unknown, or an adapter is listed twice.
    """
    chosen = ADAPTERS.resolve_many(spec if isinstance(spec, list) else [spec])
    return {name: config for name, config in chosen.items() if name != "none"}


def build_adapters(
    configs: Mapping[str, AdapterConfig], layer: int, num_layers: int, block: BlockInfo
) -> dict[str, Adapter]:
    """Build the adapters of block `layer` in a tower of `num_layers` blocks."""
    adapters: dict[str, Adapter] = {}
    for name, config in configs.items():
        if layer in select_layers(config.layers, num_layers):
            adapters |= ADAPTERS[name].build(name, config, block)
    return adapters


def with_former_options(spec: Any) -> Any:
    """Return the adapters of a saved model's config with the options that its version did not list.

    Args:
        spec: Content of `model.adapter`, not checked.
    """
    if isinstance(spec, list):
        return [with_former_options(choice) for choice in spec]
    if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
        return spec
    entry = ADAPTERS.find(spec["name"])
    return spec if entry is None else {**entry.Config.former, **spec}


__all__ = [
    "ADAPTERS",
    "Adapter",
    "AdapterConfig",
    "AdapterOutput",
    "AdapterSpec",
    "BlockInfo",
    "build_adapters",
    "resolve_adapters",
    "select_layers",
    "with_former_options",
]
