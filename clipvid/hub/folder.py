"""Files of a model folder, on disk or from the Hub, read strictly; only safetensors and JSON."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clipvid import InputError
from clipvid.files import hash_file
from clipvid.hub.errors import hub_error
from clipvid.model.saving import FORMAT_VERSION, LORA_WEIGHTS, WEIGHTS, WEIGHTS_INDEX, is_weight_file

MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*.safetensors",
    "video_preprocessor_config.json",
    "metrics.json",
    "backbone/*.json",
    "backbone/*.safetensors",
    "lora/*.json",
    "lora/*.safetensors",
)


_BACKBONE_KEYS = ("name", "pretrained", "sha256", "embedded")


_RECORD_KEYS = ("format_version", "backbone", "model", "num_classes", "labels", "templates")


def weights_hash(source: str | Path) -> str:
    """Return the SHA-256 of `model.safetensors` of a saved model, or of the index and hashes of its shards."""
    folder = find_folder(source)
    if (folder / WEIGHTS).is_file():
        return hash_file(folder / WEIGHTS)
    hashes = sorted(f"{digest} {name}" for name, digest in read_record(folder).get("files", {}).items())
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def find_folder(source: str | Path, revision: str | None = None) -> Path:
    """The folder `source`, or a copy in the cache of the repository of that id."""
    if not Path(source).is_dir():
        return _download(str(source), revision)
    if revision is not None:
        raise InputError(f"revision={revision!r} was given for {source}, a folder here, which has no revisions")
    return Path(source)


def read_record(folder: Path, source: str | Path | None = None) -> dict[str, Any]:
    """`config.json` of a model folder, checked; `source` is what it goes by in messages."""
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{source or folder} holds no model: it has no config.json")
    record = read_json(path)
    if record.get("model_type") != "clipvid":
        raise InputError(f"{path} is not the config of a clipvid model (model_type is not 'clipvid')")
    missing = [key for key in _RECORD_KEYS if key not in record]
    backbone = record.get("backbone")
    if isinstance(backbone, dict):
        missing += [f"backbone.{key}" for key in _BACKBONE_KEYS if key not in backbone]
    if missing:
        raise InputError(f"{path} is incomplete: it lacks {', '.join(missing)}")
    kinds = {"format_version": int, "backbone": dict, "model": dict} | ({"files": dict} if "files" in record else {})
    wrong = [key for key, kind in kinds.items() if not isinstance(record[key], kind)]
    if wrong:
        raise InputError(f"{path} is damaged: {', '.join(wrong)} is not what it should be. Bring a whole copy of it")
    if record["format_version"] > FORMAT_VERSION:
        raise InputError(
            f"{path} has format {record['format_version']}, this clipvid reads up to {FORMAT_VERSION}: upgrade clipvid"
        )
    return record


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        FileNotFoundError, ValueError: no such file, or no JSON object in it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged: it is no JSON ({error}). Bring a whole copy of it") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, expected a JSON object")
    return content


def read_weights(folder: Path, record: dict[str, Any]) -> dict[str, Tensor]:
    """Return the trained tensors of a model folder, if its files are those that `config.json` was written with.

    Raises:
        FileNotFoundError, InputError: a file is missing, was changed, or is named outside the folder.
    """
    for name, digest in record.get("files", {}).items():
        if not is_weight_file(name):
            raise InputError(
                f"{folder}/config.json: `files` names {name!r}; expected only {WEIGHTS}, {LORA_WEIGHTS} or shards"
            )
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is not whole: it has no {name}")
        if hash_file(folder / name) != digest:
            raise InputError(
                f"{folder / name} is damaged or was changed: its SHA-256 is not the one in config.json. Bring a whole "
                "copy of it; where the change is meant, take its entry out of `files` in config.json"
            )
    if WEIGHTS_INDEX not in record.get("files", {}):
        return read_tensors(folder / WEIGHTS)
    shards = [name for name in record["files"] if name not in (WEIGHTS_INDEX, LORA_WEIGHTS)]
    state: dict[str, Tensor] = {}
    for name in shards:
        part = read_tensors(folder / name)
        twice = state.keys() & part.keys()
        if twice:
            raise InputError(f"{folder / name} is damaged: {min(twice)} is in another file of the model too")
        state |= part
    return state


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        FileNotFoundError, ValueError: no such file, or another kind of file.
    """
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is damaged: it is no safetensors file ({error})") from error


def _download(repo_id: str, revision: str | None) -> Path:
    try:
        head = Path(snapshot_download(repo_id, revision=revision, allow_patterns=["config.json"]))
        read_record(head, repo_id)  # before anything large is fetched
        return Path(snapshot_download(repo_id, revision=head.name, allow_patterns=list(MODEL_FILES)))
    except HFValidationError as error:
        raise FileNotFoundError(f"{repo_id!r} is no folder here, and no id that a repository could have") from error
    except (HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        told = hub_error(error, repo_id, revision)
        raise type(told)(f"{repo_id!r} is no folder here, and not to be had from the Hub: {told}") from error
