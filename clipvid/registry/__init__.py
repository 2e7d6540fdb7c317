"""Named choices: `"ila"` or `{"name": "ila", "hidden": 64}` becomes a typed, frozen config.

Every list of choices (adapters, heads, sources, protocols ...) is a `Registry`. Other packages add entries through
entry points of the registry's group.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from clipvid import InputError, RunError
from clipvid.registry.options import FINITE as FINITE
from clipvid.registry.options import build_config as build_config
from clipvid.registry.options import check_option as check_option
from clipvid.registry.options import check_ranges as check_ranges
from clipvid.registry.options import check_type as check_type
from clipvid.registry.options import shown, suggest
from clipvid.registry.plugins import PLUGINS as PLUGINS
from clipvid.registry.plugins import import_plugin as import_plugin

if TYPE_CHECKING:
    OptionValue: TypeAlias = Any
else:

    class OptionValue:
        """Type of the options in a `Choice`, for the parser: any value, without conversion.

        Under `Any` jsonargparse would read a quoted number as a number. `build_config` checks the values.
        """


Choice: TypeAlias = str | dict[str, OptionValue]


class UnknownNameError(InputError):
    """Error for a name that is not in a registry.

    Attributes:
        kind: Kind of the registry's entries.
        name: The unknown name.
    """

    def __init__(self, kind: str, name: str, message: str) -> None:
        super().__init__(message)
        self.kind, self.name = kind, name


class Chosen(NamedTuple):
    """Name of an entry and its options, a frozen dataclass."""

    name: str
    config: Any


class Registry(dict[str, Any]):
    """Classes by name. The options of an entry are the fields of its `Config`, or of the entry if it is a dataclass.

    Args:
        kind: Kind of the entries, as in messages ("adapter", "head").
        entries: Built-in entries.
        group: Entry-point group through which other packages add entries, such as `clipvid.adapters`.
        presets: Names that `resolve_many` replaces by a list of choices. A preset has no options.
    """

    def __init__(
        self,
        kind: str,
        entries: Mapping[str, type],
        group: str | None = None,
        presets: Mapping[str, list[Choice]] | None = None,
    ) -> None:
        super().__init__(entries)
        self.kind, self.group, self.presets = kind, group, dict(presets or {})

    def config_class(self, name: str) -> type:
        """Return the dataclass of an entry's options."""
        entry = self[name]
        config: type = getattr(entry, "Config", entry)
        return config

    def find(self, name: str) -> Any | None:
        """Return an entry by name, from an installed package if it is not built in, or None."""
        if name not in self:
            self.load_plugins(name)
        return self.get(name)

    def resolve(self, choice: Any) -> Chosen:
        """Return the name and the config that `choice` describes.

        Args:
            choice: A name, or a mapping with `name` and options.

        Raises:
            InputError: A name or option is unknown, or a value has the wrong type. The message suggests the nearest
                valid one.
        """
        options = {"name": choice} if isinstance(choice, str) else dict(choice) if isinstance(choice, Mapping) else {}
        name = options.pop("name", None)
        if not isinstance(name, str):
            raise InputError(
                f"{self.kind}: expected a name or a mapping with `name`, got {shown(choice)}; names: {', '.join(self)}"
            )
        if self.find(name) is None:
            names = [*self, *self.presets, *(point.name for point in self._entry_points())]
            message = f"unknown {self.kind} {shown(name)}{suggest(name[:200], names)}; known: {', '.join(names)}"
            if self.group is not None:
                message += "; if another package defines it, install that package or add --plugin MODULE"
            raise UnknownNameError(self.kind, name, message)
        return Chosen(name, build_config(self.config_class(name), options, f"{self.kind} {name!r}"))

    def resolve_many(self, choices: list[Any]) -> dict[str, Any]:
        """Return configs by name, in order. A preset is replaced by its choices.

        Raises:
            InputError: See `resolve`; or `choices` is not a list, a name is listed twice, or a preset has options.
        """
        if not isinstance(choices, list | tuple):
            raise InputError(f"{self.kind}: expected a list of names and mappings with `name`, got {shown(choices)}")
        resolved = [self.resolve(part) for choice in choices for part in self._expand(choice)]
        names = [name for name, _ in resolved]
        if len(set(names)) < len(names):
            raise InputError(f"{self.kind}: each name may be listed once, got {names}")
        return dict(resolved)

    def _expand(self, choice: Any) -> list[Any]:
        """Return the choices of a preset, or `choice` alone."""
        options = dict(choice) if isinstance(choice, Mapping) else {}
        name = options.pop("name", choice)
        if not isinstance(name, str) or name not in self.presets:
            return [choice]
        if options:
            raise InputError(
                f"{self.kind} {name!r} is a preset without options, got {', '.join(map(shown, options))}; to change "
                f"it, write its list: {json.dumps(self.presets[name])}"
            )
        return list(self.presets[name])

    def load_plugins(self, name: str | None = None) -> None:
        """Add the entries of other packages: the entry `name` of this registry's entry-point group, or all.

        Modules of `--plugin`, here or in the parent process, are imported first.

        Raises:
            RunError: A package's entry cannot be imported, or is not a class with dataclass options.
        """
        for plugin in filter(None, os.environ.get(PLUGINS, "").split(os.pathsep)):
            import_plugin(plugin)
        for point in self._entry_points():
            if name in (None, point.name):
                self[point.name] = self._load(point)

    def _entry_points(self) -> list[EntryPoint]:
        """Return the entry points that are not loaded yet."""
        points = entry_points(group=self.group) if self.group is not None else ()
        return [point for point in points if point.name not in self]

    def _load(self, point: EntryPoint) -> Any:
        source = point.dist.name if point.dist is not None else "an installed package"
        try:
            entry = point.load()
        except Exception as error:
            raise RunError(f"{self.kind} {point.name!r} of {source} cannot be imported: {error}") from error
        if not (isinstance(entry, type) and dataclasses.is_dataclass(getattr(entry, "Config", entry))):
            raise RunError(
                f"{self.kind} {point.name!r} of {source}: {point.value} must be a class that is a dataclass, or has "
                "one as its `Config`"
            )
        return entry


def config_to_choice(name: str, config: Any) -> dict[str, Any]:
    """Return the inverse of `Registry.resolve`: a JSON-ready mapping with all options explicit."""
    return {"name": name, **dataclasses.asdict(config)}
