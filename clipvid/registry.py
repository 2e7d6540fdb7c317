"""Named choices: `"ila"` or `{"name": "ila", "hidden": 64}` becomes a typed, frozen config.

Every list of choices (adapters, heads, sources, protocols ...) is a `Registry`. Other packages add entries through
entry points of the registry's group.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, get_args, get_origin, get_type_hints

from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

from clipvid import InputError, RunError

if TYPE_CHECKING:
    OptionValue: TypeAlias = Any
else:

    class OptionValue:
        """Type of the options in a `Choice`, for the parser: any value, taken as it is written.

        Under `Any` jsonargparse would read a quoted number as a number. `build_config` checks the values.
        """


Choice: TypeAlias = str | dict[str, OptionValue]
FINITE = sys.float_info.max
PLUGINS = "CLIPVID_PLUGINS"  # environment variable: modules and files to import, for child processes


class UnknownNameError(InputError):
    """A name that no entry of a registry has. kind, name: what was looked for."""

    def __init__(self, kind: str, name: str, message: str) -> None:
        super().__init__(message)
        self.kind, self.name = kind, name


class Chosen(NamedTuple):
    """An entry by name, and its options: a frozen dataclass."""

    name: str
    config: Any


class Registry(dict[str, Any]):
    """Entries by name. An entry is a class. Its options are the fields of its `Config`, or its own for a dataclass.

    Args:
        kind: what is chosen, as users type it ("adapter", "head").
        entries: the built-in ones.
        group: entry-point group through which other packages add entries, such as `clipvid.adapters`.
    """

    def __init__(self, kind: str, entries: Mapping[str, type], group: str | None = None) -> None:
        super().__init__(entries)
        self.kind, self.group = kind, group

    def config_class(self, name: str) -> type:
        """Return the dataclass of the options of an entry."""
        entry = self[name]
        config: type = getattr(entry, "Config", entry)
        return config

    def find(self, name: str) -> Any | None:
        """Return the entry of a name, from an installed package if it is not built in; None if there is none."""
        if name not in self:
            self.load_plugins(name)
        return self.get(name)

    def resolve(self, choice: Any) -> Chosen:
        """Return the name and the config that `choice` describes.

        Args:
            choice: a name, or a mapping with `name` and options.

        Raises:
            InputError: an unknown name or option, or a value of the wrong type; names the nearest valid one.
        """
        options = {"name": choice} if isinstance(choice, str) else dict(choice) if isinstance(choice, Mapping) else {}
        name = options.pop("name", None)
        if not isinstance(name, str):
            raise InputError(
                f"{self.kind}: expected a name or a mapping with `name`, got {choice!r}; names: {', '.join(self)}"
            )
        if self.find(name) is None:
            known = [*self, *(point.name for point in self._entry_points())]
            message = f"unknown {self.kind} {name!r}{suggest(name, known)}; known: {', '.join(known)}"
            if self.group is not None:
                message += "; if another package defines it, install that package or add --plugin MODULE"
            raise UnknownNameError(self.kind, name, message)
        return Chosen(name, build_config(self.config_class(name), options, f"{self.kind} {name!r}"))

    def resolve_many(self, choices: list[Any]) -> dict[str, Any]:
        """Return configs by name, in order.

        Raises:
            InputError: see `resolve`; the same name twice.
        """
        resolved = [self.resolve(choice) for choice in choices]
        names = [name for name, _ in resolved]
        if len(set(names)) < len(names):
            raise InputError(f"{self.kind}: each may stand once in a list, got {names}")
        return dict(resolved)

    def load_plugins(self, name: str | None = None) -> None:
        """Add the entries of other packages: the entry `name` of this registry's entry-point group, or all.

        The modules that `--plugin` named, here or in the process that started this one, are imported first.

        Raises:
            RunError: a package's entry cannot be imported, or is not a class with the options of a dataclass.
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


def import_plugin(plugin: str) -> None:
    """Import a module that adds entries to registries, in this process and in those that it starts.

    Args:
        plugin: name of a module, or path of a Python file.

    Raises:
        InputError: no such module or file, or a file with the name of another module.
    """
    if not plugin:
        raise InputError("--plugin: expected the name of a module or the path of a Python file")
    file = Path(plugin).resolve() if plugin.endswith(".py") else None
    if file is not None and not file.is_file():
        raise InputError(f"--plugin {plugin}: there is no such file")
    name = plugin if file is None else file.stem
    if file is not None and str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))  # processes that are started later get the same path
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise InputError(
            f"--plugin {plugin}: there is no such module; install it, or give the path of a file"
        ) from None
    if file is not None and Path(module.__file__ or "").resolve() != file:
        raise InputError(f"--plugin {plugin}: {module.__file__ or 'Python'} has the same module name; rename the file")
    plugins = [part for part in os.environ.get(PLUGINS, "").split(os.pathsep) if part]
    lasting = plugin if file is None else str(file)
    if lasting not in plugins:
        os.environ[PLUGINS] = os.pathsep.join([*plugins, lasting])


def build_config(config_class: type, options: Mapping[str, Any], owner: str) -> Any:
    """Return `config_class(**options)` after a strict check of names and types.

    Args:
        options: JSON types. A boolean is not an integer, and a number is not a string.
        owner: subject of the error message, such as `adapter 'ila'`.

    Raises:
        InputError: an unknown name or a value of the wrong type; names the option, the value and what was expected.
    """
    hints = _field_types(config_class)
    for key in options:
        if key not in hints:
            known = ", ".join(sorted(hints)) or "none"
            raise InputError(f"{owner} has no option {key!r}{suggest(key, hints)}; its options: {known}")
    return config_class(**{key: check_type(value, hints[key], f"{owner}: {key}") for key, value in options.items()})


def check_type(value: Any, hint: Any, owner: str) -> Any:
    """Return `value`, made of JSON types, as the type `hint`.

    Raises:
        InputError: it has another type.
    """
    adapter = _type_adapter(hint)
    if adapter is None:
        return value
    try:
        return adapter.validate_json(json.dumps(value, default=_not_json), strict=True)
    except ValidationError as error:
        expected = dict.fromkeys(problem["msg"].removeprefix("Input should be ") for problem in error.errors())
        near = suggest(value, _literals(hint)) if isinstance(value, str) else ""
        raise InputError(f"{owner}={value!r}: expected {' or '.join(expected)}{near}") from None
    except TypeError:
        raise InputError(f"{owner}={value!r}: expected a value that JSON can hold") from None


def config_to_choice(name: str, config: Any) -> dict[str, Any]:
    """Return the inverse of `Registry.resolve`: a JSON-ready mapping with every option written out."""
    return {"name": name, **dataclasses.asdict(config)}


def check_option(owner: str, option: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raise InputError for a value outside `allowed`."""
    if value not in allowed:
        near = suggest(value, map(str, allowed)) if isinstance(value, str) else ""
        raise InputError(f"{owner}: {option}={value!r} is not one of {', '.join(map(str, allowed))}{near}")


def check_ranges(owner: str, config: Any, **bounds: tuple[float, float]) -> None:
    """Raise InputError for a field of `config` outside its bounds, both included, or not a number.

    Args:
        owner: where users type the fields, such as `optim`.
        bounds: lowest and highest value by field. The highest finite float stands for any finite number.
    """
    for name, (low, high) in bounds.items():
        value = getattr(config, name)
        if not low <= value <= high:
            above = f"of at least {low:g}" if high >= FINITE else f"from {low:g} to {high:g}"
            raise InputError(f"{owner}.{name}={value}: expected a number {above}")


def suggest(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the nearest known word, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


@cache
def _field_types(config_class: type) -> dict[str, Any]:
    hints = get_type_hints(config_class)
    return {field.name: hints[field.name] for field in dataclasses.fields(config_class) if field.init}


def _literals(hint: Any) -> list[str]:
    """Return the words that a type allows, such as those of a `Literal` in a union."""
    if get_origin(hint) is Literal:
        return [value for value in get_args(hint) if isinstance(value, str)]
    return [word for part in get_args(hint) for word in _literals(part)]


def _type_adapter(hint: Any) -> TypeAdapter[Any] | None:
    """Return a checker of JSON values for a type; None for a type that JSON values cannot have."""
    try:
        return TypeAdapter(hint)
    except (PydanticSchemaGenerationError, PydanticUserError):
        return None


def _not_json(value: Any) -> Any:
    raise TypeError(f"{type(value).__name__} is not a JSON type")
