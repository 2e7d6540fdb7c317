"""Strict parsing of configs from options, YAML files and Python values."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace, auto_cli, capture_parser, get_loader
from jsonargparse.typing import register_type

from clipvid import InputError
from clipvid.files import one_line, write_bytes
from clipvid.registry import OptionValue
from clipvid.runs.yaml_files import read_yaml_text

ConfigT = TypeVar("ConfigT")


def _unchanged(value: Any) -> Any:
    return value


register_type(OptionValue, _unchanged, _unchanged, type_check=lambda value, kind: True)


def parse_config(
    config_class: type[ConfigT], args: list[str] | None, prog: str, as_positional: bool = False
) -> ConfigT:
    """Parse a config from `--config file.yaml` and the command line, whose options take precedence in any order.

    Unknown keys, values of the wrong type and `null` for a required value end the program with exit code 2.

    Args:
        config_class: Dataclass of the config.
        args: Words of the command line, or None for those of this process.
        prog: Name of the command in messages.
        as_positional: Take fields without a default by position, not by name.
    """
    parser = _build_parser(config_class, prog, as_positional)
    return _parse(parser, config_class, sys.argv[1:] if args is None else args)


def set_options(config_class: type, args: list[str] | None, prog: str) -> frozenset[str]:
    """Return the names of the options that the command line and its `--config` files set, such as `data.train`.

    Call it after `parse_config`, which reports invalid options.
    """
    parser = _build_parser(config_class, prog, False)
    words = _renamed(_located(sys.argv[1:] if args is None else args), getattr(config_class, "RENAMED", {}))
    return frozenset(name for name, _ in parser.parse_args(words, defaults=False).items())


def read_config(config_class: type[ConfigT], source: ConfigT | Mapping[str, Any] | str | os.PathLike[str]) -> ConfigT:
    """Read a config from a Python value, as strictly as `parse_config`.

    Args:
        config_class: Dataclass of the config.
        source: An instance of `config_class`, a nested mapping with the keys of a YAML file, or the path of such a
            file. A path may be the name of a config in the package, such as `configs/demo.yaml`.

    Raises:
        InputError: The value has another type, the file does not exist, or an option is unknown or invalid.
    """
    if isinstance(source, config_class):
        return source
    parser = _build_parser(config_class, "config", False)
    parser.exit_on_error = False
    try:
        return _parse(parser, config_class, ["--config", _config_text(config_class, source)])
    except ArgumentError as error:
        raise InputError(f"config: {one_line(error)}") from error


def _config_text(config_class: type, source: object) -> str:
    """Return the value for `--config`: JSON for a mapping, or the path of an existing file."""
    if isinstance(source, Mapping):
        try:
            return json.dumps(source, default=_plain)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"config is a mapping that YAML cannot represent: {error}") from error
    if not isinstance(source, str | os.PathLike):
        raise InputError(
            f"config is of type {type(source).__name__}; expected a {config_class.__name__}, a mapping, or the path of "
            "a YAML file"
        )
    path = config_path(os.fspath(source))
    if not path.is_file():
        raise InputError(f"config={os.fspath(source)!r}: no such file; `clipvid configs` lists those of the package")
    return str(path)


def _plain(value: object) -> object:
    """Convert a value inside a config mapping to a JSON type."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return dict(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{value!r} is a {type(value).__name__}")


def _build_parser(config_class: type, prog: str, as_positional: bool) -> ArgumentParser:
    parser: ArgumentParser = capture_parser(
        lambda: auto_cli(config_class, args=[], prog=prog, as_positional=as_positional)
    )
    return parser


def _parse(parser: ArgumentParser, config_class: type[ConfigT], args: list[str]) -> ConfigT:
    words = _located(args)
    _check_files(words)
    words = _renamed(words, getattr(config_class, "RENAMED", {}))
    try:
        options = parser.parse_args(words)
    except RecursionError:
        parser.error("the config is nested too deeply or contains itself")
    unfit = _unfit(config_class, options)
    if unfit:
        parser.error(f"invalid value: {', '.join(unfit)}; remove an option for its default")
    _load_inline(config_class, options, words)
    values = parser.instantiate(options)
    return config_class(**{item.name: values[item.name] for item in dataclasses.fields(config_class)})  # type: ignore


def _load_inline(config_class: Any, values: Namespace, words: list[str]) -> None:
    """Parse options of a choice on the command line as YAML, so that the 32 of `--model.adapter.hidden 32` is a number.

    The parser does not convert the values of a `Choice`. This is right for YAML, where quotes turn a number into text.
    """
    for word, following in itertools.pairwise([*words, ""]):
        option, equals, inline = word.partition("=")
        text, path = inline if equals else following, option.removeprefix("--").split(".")
        hint: Any = config_class
        owner: Any = values
        while len(path) > 1 and isinstance(owner, Namespace | dict):
            if dataclasses.is_dataclass(hint):
                hint = get_type_hints(hint).get(path[0])
                nested = [kind for kind in (hint, *get_args(hint)) if dataclasses.is_dataclass(kind)]
                hint = nested[0] if nested else hint
            owner, path = owner.get(path[0]), path[1:]
        if isinstance(owner, dict) and _has_options(hint) and owner.get(path[0]) == text:
            owner[path[0]] = get_loader("yaml")(text)


def _has_options(hint: Any) -> bool:
    """Return True if a type contains a `Choice`."""
    return hint is OptionValue or any(_has_options(part) for part in get_args(hint))


def config_path(name: str | Path) -> Path:
    """Return the file of a config's name.

    Existing paths are returned unchanged. Other names are looked up among the configs of the package, with or without
    the prefix `configs/`.
    """
    path = Path(name)
    if not path.exists():
        inside = config_folder() / path.as_posix().removeprefix("configs/")
        if inside.is_file():
            return inside
    return path


def config_folder() -> Path:
    """Return the folder of the package's configs: inside an installed package, or next to it in the repository."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def copy_configs(folder: Path) -> int:
    """Copy the package's configs to `folder` and return their number.

    Raises:
        FileExistsError: A file exists with other content, such as an edited config. Nothing is copied.
    """
    source = config_folder()
    files = {file: folder / file.relative_to(source) for file in sorted(source.rglob("*")) if file.is_file()}
    for file, copy in files.items():
        if copy.exists() and copy.read_bytes() != file.read_bytes():
            raise FileExistsError(f"--copy {folder}: {copy} has other content; move it away, or choose another folder")
    for file, copy in files.items():
        write_bytes(copy, file.read_bytes())
    return len(files)


def _located(args: list[str]) -> list[str]:
    """Return the arguments with names of packaged configs replaced by their paths, and configs before all options."""
    configs, options = [], []
    for before, word in itertools.pairwise(["", *args]):
        option, equals, value = word.partition("=")
        if option == "--config" and equals:
            configs.append(f"--config={config_path(value)}" if value.endswith(".yaml") else word)
        elif word == "--config":
            configs.append(word)
        elif before == "--config":
            configs.append(str(config_path(word)) if word.endswith(".yaml") else word)
        else:
            options.append(word)
    return [*configs, *options]


def _check_files(args: list[str]) -> None:
    """Raise InputError for a file of `--config` that is not plain YAML of a bounded size; see `read_yaml_text`."""
    for before, word in itertools.pairwise(["", *args]):
        option, equals, value = word.partition("=")
        name = value if option == "--config" and equals else word if before == "--config" else ""
        if name.endswith((".yaml", ".yml", ".json")) and Path(name).exists():
            read_yaml_text(Path(name))


def _renamed(args: list[str], names: dict[str, str]) -> list[str]:
    """Return the arguments with current names of options, also in `--config` files. Warn about former names.

    Args:
        args: Words of the command line.
        names: Current names by former ones, of options at the top level.
    """
    result: list[str] = []
    for before, word in itertools.pairwise(["", *args]):
        option, equals, value = word.partition("=")
        former = next((name for name in names if option == f"--{name}" or option.startswith(f"--{name}.")), None)
        if former is not None:
            _warn_renamed(former, names[former])
            word = f"--{names[former]}{word.removeprefix(f'--{former}')}"
        elif names and option == "--config" and equals:
            word = f"--config={_renamed_keys(value, names)}"
        elif names and before == "--config":
            word = _renamed_keys(word, names)
        result.append(word)
    return result


def _renamed_keys(config: str, names: dict[str, str]) -> str:
    """Return a path of a YAML file, or its content with current names if it has former ones."""
    path = Path(config)
    try:
        tree = yaml.compose(path.read_text() if path.suffix == ".yaml" and path.is_file() else config, yaml.SafeLoader)
    except (yaml.YAMLError, OSError, ValueError):
        return config  # reported by the parser
    keys = [key for key, _ in tree.value] if isinstance(tree, yaml.MappingNode) else []
    former = [key for key in keys if key.value in names]
    for key in former:
        if any(other.value == names[key.value] for other in keys):
            raise InputError(f"{key.value} is the former name of {names[key.value]}; remove one of them")
        _warn_renamed(key.value, names[key.value])
        key.value = names[key.value]
    return yaml.serialize(tree, Dumper=yaml.SafeDumper) if former else config


def _warn_renamed(former: str, present: str) -> None:
    warnings.warn(f"the option {former} is now called {present}; the former name is deprecated", FutureWarning, 2)


def _unfit(config_class: Any, values: Any, prefix: str = "") -> list[str]:
    """Return invalid options that jsonargparse accepts: null without None in the type, or values for mappings."""
    problems = []
    hints = get_type_hints(config_class)
    for name in (item.name for item in dataclasses.fields(config_class)):
        hint = hints[name]
        value, kinds = values[name], get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        nested = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
        missing = value is None and type(None) not in kinds
        if missing or (nested is not None and not isinstance(value, Namespace | dict | None)):
            problems.append(f"{prefix}{name}: {json.dumps(value, default=str)}")
        elif nested is not None and value is not None:
            problems += _unfit(nested, value, f"{prefix}{name}.")
    return problems


def config_record(config: Any) -> dict[str, Any]:
    """Convert the config to plain JSON types."""
    record: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return record
