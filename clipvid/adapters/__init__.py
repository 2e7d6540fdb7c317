"""Temporal adapters by name. A new one is a file here and a line in `ADAPTERS`."""

from __future__ import annotations

from clipvid.adapters.base import Adapter, AdapterConfig, AdapterOutput, BlockSizes, select_layers
from clipvid.adapters.ila import ILA
from clipvid.choices import Choice, resolve_choice

ADAPTERS: dict[str, type[Adapter]] = {"none": Adapter, "ila": ILA}

AdapterSpec = Choice | list[Choice]


def resolve_adapters(spec: AdapterSpec) -> dict[str, AdapterConfig]:
    """Configs by name, in the order of the list; `none` adds nothing.

    Raises:
        ValueError: an unknown adapter or option, or the same adapter twice.
    """
    registry = {name: adapter.Config for name, adapter in ADAPTERS.items()}
    chosen = [resolve_choice(item, registry, "adapter") for item in (spec if isinstance(spec, list) else [spec])]
    names = [name for name, _ in chosen]
    if len(set(names)) < len(names):
        raise ValueError(f"adapter: each may stand once in a list, got {names}")
    return {name: config for name, config in chosen if name != "none"}


def build_adapters(
    configs: dict[str, AdapterConfig], layer: int, num_layers: int, sizes: BlockSizes
) -> dict[str, Adapter]:
    """Fresh adapters for the block `layer` of `num_layers`."""
    return {
        name: ADAPTERS[name](config, sizes)
        for name, config in configs.items()
        if layer in select_layers(config.layers, num_layers)
    }


__all__ = [
    "ADAPTERS",
    "Adapter",
    "AdapterConfig",
    "AdapterOutput",
    "AdapterSpec",
    "BlockSizes",
    "build_adapters",
    "resolve_adapters",
    "select_layers",
]
