"""Files of text features, for exported models that take them as an input.

Shapes: K classes, E embedding.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from clipvid import InputError
from clipvid.files import check_regular, json_text, one_line, write_bytes

SUFFIX = ".texts.safetensors"


def texts_path(model: Path) -> Path:
    """Return the path of the text features beside a model."""
    return model.with_suffix(SUFFIX)


def write_texts(path: Path, names: Sequence[str], features: np.ndarray) -> None:
    """Write the features float32 [K, E] of K class names."""
    write_bytes(path, save({"features": features}, metadata={"names": json_text(list(names))}))


def read_texts(path: Path) -> tuple[list[str], np.ndarray]:
    """Return class names and features float32 [K, E].

    Raises:
        InputError: The file is not one of `write_texts`.
        FileNotFoundError: The file does not exist.
    """
    check_regular(path, "file of text features")
    try:
        with safe_open(path, framework="np") as file:
            names, features = json.loads((file.metadata() or {})["names"]), file.get_tensor("features")
    except (SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a file of text features ({one_line(error, 100)})") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path}: names are not a list of class names")
    if features.dtype != np.float32 or features.ndim != 2 or len(features) != len(names) or not names:
        raise InputError(
            f"{path}: features are {features.dtype} {list(features.shape)} for {len(names)} names; expected float32 "
            "[K, E]"
        )
    return names, features
