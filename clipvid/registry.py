"""Choices by name: `"ila"` or `{"name": "ila", "hidden": 64}` becomes a registered config, strictly."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

Choice: TypeAlias = str | dict[str, Any]


def resolve_choice(spec: Choice, registry: Mapping[str, type], kind: str) -> tuple[str, Any]:
    """The name and the config object that `spec` asks for.

    Args:
        spec: a registered name, or a mapping with `name` and fields of that name's config dataclass.
        registry: name -> config dataclass.
        kind: what is chosen, for the error's sake ("adapter", "head").

    Raises:
        ValueError: unknown name or unknown field; says which exist.
        TypeError: `spec` is neither a name nor a mapping with one.
    """
    options = {"name": spec} if isinstance(spec, str) else dict(spec) if isinstance(spec, Mapping) else None
    if options is None or not isinstance(options.get("name"), str):
        raise TypeError(f"{kind}: expected a name or a mapping with 'name', got {spec!r}; names: {', '.join(registry)}")
    name = options.pop("name")
    if name not in registry:
        raise ValueError(f"unknown {kind} {name!r}{suggest(name, registry)}; known: {', '.join(registry)}")
    return name, build_config(registry[name], options, f"{kind} {name!r}")


def build_config(config_class: type, options: Mapping[str, Any], owner: str) -> Any:
    """`config_class(**options)`, with unknown fields refused by name."""
    fields = {field.name for field in dataclasses.fields(config_class)}
    for key in options:
        if key not in fields:
            known = ", ".join(sorted(fields)) or "none"
            raise ValueError(f"{owner} has no option {key!r}{suggest(key, fields)}; its options: {known}")
    return config_class(**options)


def config_to_choice(name: str, config: Any) -> dict[str, Any]:
    """The inverse of `resolve_choice`: a JSON-ready mapping with every field written out."""
    return {"name": name, **dataclasses.asdict(config)}


def check_option(owner: str, option: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Refuse a value outside `allowed`, saying what is."""
    if value not in allowed:
        raise ValueError(f"{owner}: {option}={value!r} is not one of {', '.join(map(str, allowed))}")


def suggest(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the nearest known word, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
