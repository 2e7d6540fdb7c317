"""Checks of option names and values against the types of config classes."""

from __future__ import annotations

import dataclasses
import difflib
import json
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

from clipvid import InputError
from clipvid.files import one_line

FINITE = sys.float_info.max


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
            names = ", ".join(sorted(hints)) or "none"
            raise InputError(f"{owner} has no option {shown(key)}{suggest(key[:200], hints)}; its options: {names}")
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
        raise InputError(f"{owner}={shown(value)}: expected {one_line(' or '.join(expected))}{near}") from None
    except TypeError:
        raise InputError(f"{owner}={shown(value)}: expected a value that JSON can represent") from None


def check_option(owner: str, option: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raise InputError for a value outside `allowed`."""
    if value not in allowed:
        near = suggest(value[:200], map(str, allowed)) if isinstance(value, str) else ""
        raise InputError(f"{owner}: {option}={shown(value)} is not one of {', '.join(map(str, allowed))}{near}")


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


def suggest(word: str, choices: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the nearest choice, or an empty string."""
    close = difflib.get_close_matches(word, list(choices), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def shown(value: Any) -> str:
    """Return the representation of a value for messages, on one line and shortened."""
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
