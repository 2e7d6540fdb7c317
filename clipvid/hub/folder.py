"""Strict reading of the files of a model folder, from disk or the Hub: only safetensors and JSON."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from pydantic import Field
from torch import Tensor

from clipvid import InputError
from clipvid.adapters import with_former_options
from clipvid.files import hash_file
from clipvid.hub.errors import hub_error
from clipvid.hub.strict import check_sizes, read_json, read_tensors
from clipvid.hub.xclip_folder import MODEL_TYPE, XCLIP_FILES, weight_files
from clipvid.model.saving import CONFIG, FORMAT_VERSION, LORA_WEIGHTS, WEIGHTS, WEIGHTS_INDEX, is_weight_file
from clipvid.registry import check_type

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


# Types of the entries of config.json and its mapping `backbone`. The class of `model` checks it.
_KINDS: dict[str, Any] = {
    "format_version": Annotated[int, Field(ge=1)],
    "num_classes": Annotated[int, Field(ge=1)] | None,
    "labels": list[str],
    "templates": list[str],
    "files": dict[str, str],
    "model": dict[str, Any],
    "origin": dict[str, str],
    "backbone": dict[str, Any],
    "backbone.name": str,
    "backbone.pretrained": str | None,
    "backbone.sha256": str,
    "backbone.embedded": bool,
    "backbone.base_sha256": str,
    "backbone.files": list[str],
}
_RECORD_KEYS = ("format_version", "backbone", "model", "num_classes", "labels", "templates")


def weights_hash(source: str | Path) -> str:
    """Return the SHA-256 of `model.safetensors` of a saved model, or of the index and hashes of its shards."""
    folder = find_folder(source)
    if (folder / WEIGHTS).is_file():
        return hash_file(folder / WEIGHTS)
    if is_xclip(folder):
        return hashlib.sha256("\n".join(map(hash_file, weight_files(folder))).encode()).hexdigest()
    hashes = sorted(f"{digest} {name}" for name, digest in read_record(folder).get("files", {}).items())
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def is_xclip(folder: Path) -> bool:
    """Return True for a folder of transformers' `XCLIPModel`."""
    return (folder / CONFIG).exists() and read_json(folder / CONFIG).get("model_type") == MODEL_TYPE


def trained_labels(source: str | Path) -> list[str]:
    """Return the class names of a saved model's training, as far as they are recorded."""
    folder = find_folder(source)
    labels: list[str] = [] if is_xclip(folder) else read_record(folder, source)["labels"]
    return labels


def find_folder(source: str | Path, revision: str | None = None) -> Path:
    """Return the folder `source`, or the cached copy of a Hub repository with this id."""
    if not Path(source).is_dir():
        return _download(str(source), revision)
    if revision is not None:
        raise InputError(f"revision={revision!r} was given for {source}, a local folder, which has no revisions")
    return Path(source)


def read_record(folder: Path, source: str | Path | None = None) -> dict[str, Any]:
    """Read and check `config.json` of a model folder. `source` is the name of the model in messages."""
    path = folder / "config.json"
    if not path.exists():
        raise InputError(f"{source or folder} holds no model: it has no config.json")
    return check_record(read_json(path), path)


def check_record(record: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the content of `config.json`, checked and with the adapter options that earlier versions did not list.

    Raises:
        InputError: it is of another library or of a later format, or entries are missing or of a wrong type.
    """
    if record.get("model_type") != "clipvid":
        raise InputError(f"{path} is not the config of a clipvid model (model_type is not 'clipvid')")
    missing = [key for key in _RECORD_KEYS if key not in record]
    backbone = record.get("backbone")
    if isinstance(backbone, dict):
        missing += [f"backbone.{key}" for key in _BACKBONE_KEYS if key not in backbone]
    if missing:
        raise InputError(f"{path} is incomplete: it lacks {', '.join(missing)}")
    for name, hint in _KINDS.items():
        owner, _, key = name.rpartition(".")
        values = record[owner] if owner else record
        if not isinstance(values, dict) or (key in values and not _is_kind(values[key], hint)):
            raise InputError(f"{path} is damaged: {name} is invalid. Replace it by an intact copy")
    unknown = sorted(f"backbone.{key}" for key in record["backbone"] if f"backbone.{key}" not in _KINDS)
    if unknown and record["format_version"] <= FORMAT_VERSION:
        raise InputError(f"{path} is damaged: it has the unknown entry {unknown[0][:80]!r}. Bring a whole copy of it")
    if record["format_version"] > FORMAT_VERSION:
        raise InputError(
            f"{path} has format {record['format_version']}, this clipvid reads up to {FORMAT_VERSION}: upgrade clipvid"
        )
    model = record["model"]
    return record | {
        "model": model | {"adapter": with_former_options(model["adapter"])} if "adapter" in model else model
    }


def _is_kind(value: Any, hint: Any) -> bool:
    try:
        check_type(value, hint, "")
    except InputError:
        return False
    return True


def read_weights(folder: Path, record: dict[str, Any]) -> dict[str, Tensor]:
    """Return the trained tensors of a model folder, after checking its files against `config.json`.

    Raises:
        FileNotFoundError: A file is missing.
        InputError: A file was changed, or is listed outside the folder.
    """
    for name, digest in record.get("files", {}).items():
        if not is_weight_file(name):
            raise InputError(
                f"{folder}/config.json: `files` names {name!r}; expected only {WEIGHTS}, {LORA_WEIGHTS} or shards"
            )
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is incomplete: it has no {name}")
        if hash_file(folder / name) != digest:
            raise InputError(
                f"{folder / name} is damaged or was changed: its SHA-256 is not the one in config.json. Replace it "
                "by an intact copy; if the change is intended, remove its entry from `files` in config.json"
            )
    shards = [WEIGHTS]
    if WEIGHTS_INDEX in record.get("files", {}):
        shards = [name for name in record["files"] if name not in (WEIGHTS_INDEX, LORA_WEIGHTS)]
    weights = [folder / name for name in (*shards, LORA_WEIGHTS) if name in shards or (folder / name).exists()]
    sizes = {"num_classes": record["num_classes"], **record["model"]}
    check_sizes(sizes, weights, folder / "config.json")
    state: dict[str, Tensor] = {}
    for name in shards:
        part = read_tensors(folder / name)
        twice = state.keys() & part.keys()
        if twice:
            raise InputError(f"{folder / name} is damaged: {min(twice)} is also in another file of the model")
        state |= part
    return state


def _download(repo_id: str, revision: str | None) -> Path:
    try:
        head = Path(snapshot_download(repo_id, revision=revision, allow_patterns=["config.json"]))
        files = XCLIP_FILES if is_xclip(head) else MODEL_FILES
        if files is MODEL_FILES:
            read_record(head, repo_id)  # before large downloads
        return Path(snapshot_download(repo_id, revision=head.name, allow_patterns=list(files)))
    except HFValidationError as error:
        raise FileNotFoundError(f"{repo_id!r} is neither a local folder nor a valid id of a Hub repository") from error
    except (HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        explained = hub_error(error, repo_id, revision)
        raise type(explained)(
            f"{repo_id!r} is not a local folder and is not available on the Hub: {explained}"
        ) from error
