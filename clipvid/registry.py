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
from clipvid.files import one_line

if TYPE_CHECKING:
    OptionValue: TypeAlias = Any
else:

    class OptionValue:
        """Type of the options in a `Choice`, for the parser: any value, without conversion.

        Under `Any` jsonargparse would read a quoted number as a number. `build_config` checks the values.
        """


Choice: TypeAlias = str | dict[str, OptionValue]
FINITE = sys.float_info.max
PLUGINS = "CLIPVID_PLUGINS"  # environment variable with modules and files to import, for child processes


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
                f"{self.kind}: expected a name or a mapping with `name`, got {_shown(choice)}; names: {', '.join(self)}"
            )
        if self.find(name) is None:
            known = [*self, *self.presets, *(point.name for point in self._entry_points())]
            message = f"unknown {self.kind} {_shown(name)}{suggest(name[:200], known)}; known: {', '.join(known)}"
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
            raise InputError(f"{self.kind}: expected a list of names and mappings with `name`, got {_shown(choices)}")
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
                f"{self.kind} {name!r} is a preset without options, got {', '.join(map(_shown, options))}; to change "
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


def import_plugin(plugin: str) -> None:
    """Import a module that adds entries to registries, in this process and its child processes.

    Args:
        plugin: Name of a module, or path of a Python file.

    Raises:
        InputError: The module or file does not exist, or a file has the name of another module.
    """
    if not plugin:
        raise InputError("--plugin: expected the name of a module or the path of a Python file")
    file = Path(plugin).resolve() if plugin.endswith(".py") else None
    if file is not None and not file.is_file():
        raise InputError(f"--plugin {plugin}: the file does not exist")
    name = plugin if file is None else file.stem
    if file is not None and str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))  # child processes inherit the path
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise InputError(
            f"--plugin {plugin}: the module does not exist; install it, or pass the path of a file"
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
        config_class: Dataclass of the config.
        options: JSON types. A boolean is not an integer, and a number is not a string.
        owner: Subject of the error message, such as `adapter 'ila'`.

    Raises:
        InputError: A name is unknown or a value has the wrong type. The message has the option and the expected type.
    """
    hints = _field_types(config_class)
    for key in options:
        if key not in hints:
            known = ", ".join(sorted(hints)) or "none"
            raise InputError(f"{owner} has no option {_shown(key)}{suggest(key[:200], hints)}; its options: {known}")
    return config_class(**{key: check_type(value, hints[key], f"{owner}: {key}") for key, value in options.items()})


def check_type(value: Any, hint: Any, owner: str) -> Any:
    """Convert `value`, made of JSON types, to the type `hint`.

    Raises:
        InputError: The value has another type.
    """
    adapter = _type_adapter(hint)
    if adapter is None:
        return value
    try:
        return adapter.validate_json(json.dumps(value, default=_not_json), strict=True)
    except ValidationError as error:
        expected = dict.fromkeys(problem["msg"].removeprefix("Input should be ") for problem in error.errors())
        near = suggest(value[:200], _literals(hint)) if isinstance(value, str) else ""
        raise InputError(f"{owner}={_shown(value)}: expected {one_line(' or '.join(expected))}{near}") from None
    except TypeError:
        raise InputError(f"{owner}={_shown(value)}: expected a value that JSON can represent") from None


def config_to_choice(name: str, config: Any) -> dict[str, Any]:
    """Return the inverse of `Registry.resolve`: a JSON-ready mapping with all options explicit."""
    return {"name": name, **dataclasses.asdict(config)}


def check_option(owner: str, option: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raise InputError for a value outside `allowed`."""
    if value not in allowed:
        near = suggest(value[:200], map(str, allowed)) if isinstance(value, str) else ""
        raise InputError(f"{owner}: {option}={_shown(value)} is not one of {', '.join(map(str, allowed))}{near}")


def check_ranges(owner: str, config: Any, **bounds: tuple[float, float]) -> None:
    """Raise InputError for a field of `config` outside its bounds (inclusive) or not a number.

    Args:
        owner: Prefix of the fields in messages, such as `optim`.
        config: Config with the fields.
        bounds: Lowest and highest value by field. The largest finite float means any finite number.
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


def _shown(value: Any) -> str:
    return one_line(repr(value), 200)


@cache
def _field_types(config_class: type) -> dict[str, Any]:
    hints = get_type_hints(config_class)
    return {field.name: hints[field.name] for field in dataclasses.fields(config_class) if field.init}


def _literals(hint: Any) -> list[str]:
    """Return the words of a type, such as those of a `Literal` in a union."""
    if get_origin(hint) is Literal:
        return [value for value in get_args(hint) if isinstance(value, str)]
    return [word for part in get_args(hint) for word in _literals(part)]


def _type_adapter(hint: Any) -> TypeAdapter[Any] | None:
    """Return a checker of JSON values for a type, or None if JSON values cannot have the type."""
    try:
        return TypeAdapter(hint)
    except (PydanticSchemaGenerationError, PydanticUserError):
        return None


def _not_json(value: Any) -> Any:
    raise TypeError(f"{type(value).__name__} is not a JSON type")
