"""Bounded reading of untrusted JSON and tensors, with one clear error instead of a hang, crash or full memory."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from clipvid import InputError
from clipvid.files import check_regular, one_line

MAX_BYTES = 64 * 2**20
MAX_DEPTH = 32
_SMALL = 256  # options up to this value never allocate much
_LIMITS = {
    "num_frames": 4096,
    "image_size": 2048,
    "stride": 100_000,
    "layers": 64,
    "prompt_layers": 64,
    "mlp_ratio": 32,
}
_FLOATING = {torch.float64, torch.float32, torch.bfloat16, torch.float16}


def check_model_file(path: Path) -> None:
    """Check that a path of a model folder is a regular file inside that folder.

    The Hub's cache stores files as links into its `blobs` folder, which are allowed.

    Raises:
        FileNotFoundError: The file does not exist.
        InputError: The path is a pipe, a device, a folder, or a link to another place.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    check_regular(path, "file of the model")
    if path.is_symlink():
        folder = path.parent if path.parent.name not in ("backbone", "lora") else path.parent.parent
        allowed = [folder.resolve()]
        # A repository of the cache may have models in subfolders of a snapshot.
        snapshots = [parent for parent in path.absolute().parents if parent.name == "snapshots"]
        allowed += [parent.parent.resolve() / "blobs" for parent in snapshots[:1]]
        if not any(path.resolve().is_relative_to(root) for root in allowed):
            raise InputError(f"{path} is a link out of the model folder; replace the link by the file")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        FileNotFoundError: The file does not exist.
        InputError: The file is not regular, too long, not JSON or not an object. Also raised for duplicate keys,
            numbers that are not finite, or values nested too deep.
    """
    check_model_file(path)
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path} has {path.stat().st_size} bytes; expected at most {MAX_BYTES}")
    try:
        content = json.loads(
            path.read_text(encoding="utf-8"),
            object_pairs_hook=lambda pairs: _unique(pairs, path),
            parse_constant=lambda word: _refuse_number(word, path),
            parse_float=lambda word: _finite(word, path),
        )
    except RecursionError:
        raise InputError(f"{path}: its values are nested too deep; expected at most {MAX_DEPTH} levels") from None
    except InputError:
        raise
    except ValueError as error:
        raise InputError(
            f"{path} is damaged: it is not JSON ({one_line(error)}). Replace it by an intact copy"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path} contains a {type(content).__name__}, expected a JSON object")
    if _is_deep(content):
        raise InputError(f"{path}: its values are nested too deep; expected at most {MAX_DEPTH} levels")
    return content


def _unique(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise InputError(f"{path}: the key {key[:40]!r} appears twice")
        content[key] = value
    return content


def _refuse_number(word: str, path: Path) -> float:
    raise InputError(f"{path}: {word[:40]} is not a finite number")


def _finite(word: str, path: Path) -> float:
    value = float(word)
    return value if math.isfinite(value) else _refuse_number(word, path)


def _is_deep(content: dict[str, Any]) -> bool:
    """Return True for values nested deeper than `MAX_DEPTH` (found without recursion, which Python limits)."""
    level: list[Any] = [content]
    for _ in range(MAX_DEPTH):
        below = (item for part in level for item in (part.values() if isinstance(part, dict) else part))
        level = [item for item in below if isinstance(item, dict | list)]
    return bool(level)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        FileNotFoundError: The file does not exist.
        InputError: The file has another format, or weights that are not finite.
    """
    check_model_file(path)
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is damaged: it is not a safetensors file ({one_line(error)})") from error
    check_finite(state, path)
    return state


def check_finite(state: Mapping[str, Tensor], owner: Path | str) -> None:
    """Raise InputError for weights with NaN or infinity."""
    wrong = [name for name, value in state.items() if value.dtype in _FLOATING and not bool(value.isfinite().all())]
    if wrong:
        raise InputError(f"{owner} is damaged: {', '.join(sorted(wrong)[:3])} has values that are not finite numbers")


def check_dtypes(own: Mapping[str, Tensor], state: Mapping[str, Tensor], owner: Path | str) -> None:
    """Raise InputError for tensors whose type does not fit a model's weights."""
    for name in sorted(own.keys() & state.keys()):
        dtype = state[name].dtype
        if own[name].is_floating_point() != (dtype in _FLOATING):
            raise InputError(f"{owner}: {name} is {dtype}, expected a type like {own[name].dtype}")


def check_sizes(options: Any, files: Iterable[Path], owner: Path, name: str = "model") -> None:
    """Compare the sizes in a config with those of the tensors in `files` before allocating memory.

    Raises:
        InputError: A size is negative, above its limit, or larger than any dimension of the tensors.
    """
    for key, value in _sizes(options, name):
        option = key.rsplit(".", 1)[-1]
        limit = _LIMITS.get(option)
        if limit is None:
            limit = _SMALL if value <= _SMALL else max(_SMALL, _largest_dimension(files))
        lowest = -limit if option == "layers" else -1  # negative indices of blocks count from the end
        if not lowest <= value <= limit:
            raise InputError(f"{owner}: {key}={value} does not fit the weights; expected {lowest} to {limit}")


def _sizes(value: Any, name: str) -> list[tuple[str, float]]:
    """Return the integers and bounded numbers in a config, by their dotted names."""
    if isinstance(value, dict):
        return [size for key, item in value.items() for size in _sizes(item, f"{name}.{key}")]
    if isinstance(value, list):
        return [size for item in value for size in _sizes(item, name)]
    bounded = isinstance(value, float) and name.rsplit(".", 1)[-1] in _LIMITS
    return [(name, value)] if bounded or (isinstance(value, int) and not isinstance(value, bool)) else []


def _largest_dimension(files: Iterable[Path]) -> int:
    largest = 0
    for path in files:
        check_model_file(path)
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 (not a dict)
                    largest = max(largest, *file.get_slice(key).get_shape(), 0)
        except SafetensorError as error:
            raise InputError(f"{path} is damaged: it is not a safetensors file ({one_line(error)})") from error
    return largest
