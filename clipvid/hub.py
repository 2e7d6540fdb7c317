"""Model folders: read from disk or from the Hugging Face Hub, strictly; only safetensors and JSON, no code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clipvid.backbone import Backbone, load_backbone
from clipvid.builder import create_model
from clipvid.choices import build_config
from clipvid.model import ModelConfig, VideoCLIP
from clipvid.saving import FORMAT_VERSION, LORA_WEIGHTS, hash_file
from clipvid.state_dicts import load_strictly
from clipvid.tuning import SHARES_BACKBONE, resolve_tuning

MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "video_preprocessor_config.json",
    "metrics.json",
    "backbone/*.json",
    "backbone/*.safetensors",
    "lora/*.json",
    "lora/*.safetensors",
)
LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
_BACKBONE_KEYS = ("name", "pretrained", "sha256", "embedded")
_RECORD_KEYS = ("format_version", "backbone", "model", "num_classes", "labels", "templates")


def from_pretrained(source: str | Path, revision: str | None = None, backbone: Backbone | None = None) -> VideoCLIP:
    """A saved model, in evaluation mode.

    Args:
        source: a folder that `save_pretrained` wrote, or the id of such a repository on the Hub.
        revision: branch, tag or commit on the Hub.
        backbone: of a model in memory, to share its frozen weights instead of loading them again.

    Raises:
        FileNotFoundError: no folder of that name, and no such repository or revision either.
        PermissionError, ConnectionError: the Hub refuses, or fails.
        ValueError: not a model of clipvid, damaged files, weights that do not fit, or another backbone than the one
            trained on.
    """
    folder = find_folder(source, revision)
    record = read_record(folder, source)
    state = read_weights(folder, record)
    try:
        return _build(folder, source, record, state, backbone)
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise ValueError(f"{folder}/config.json is damaged: its values make no model ({error!r})") from error


def _build(
    folder: Path, source: str | Path, record: dict[str, Any], state: dict[str, Tensor], backbone: Backbone | None
) -> VideoCLIP:
    config = build_config(ModelConfig, record["model"], f"{folder}/config.json")
    if backbone is None:
        backbone = _load_backbone(folder, record, config)
    elif not resolve_tuning(config.tune).keys() <= SHARES_BACKBONE:
        raise ValueError(
            f"{source} has a backbone of its own (tune={config.tune}): it cannot share that of another model"
        )
    _check_fingerprint(source, record, backbone)
    model = VideoCLIP(backbone, config, record["num_classes"]).eval()
    model = model.to(next(backbone.vision.parameters()).device)
    load_strictly(model.saved_state(), state)
    if hasattr(model, "peft_config"):
        load_strictly(model.lora_state(), read_tensors(folder / LORA_WEIGHTS))
    if record["labels"]:
        model.set_labels(record["labels"], record["templates"])
    pixels = read_json(folder / "video_preprocessor_config.json")
    model.preprocessing = {key: value for key, value in pixels.items() if key in ("sampling", "resize")}
    return model


def start_from(model: VideoCLIP, source: str | Path) -> None:
    """Copy adapters and pooling of a saved model into `model`, which stands on the same backbone.

    Raises:
        ValueError: another backbone, or other adapters or pooling; says what differs. Also see `from_pretrained`.
    """
    saved = from_pretrained(source)
    wanted, found = model.backbone.fingerprint(), saved.backbone.fingerprint()
    if found != wanted:
        raise ValueError(
            f"init_from {source}: its adapters stand on another backbone ({saved.backbone.name}, SHA-256 of weights "
            f"{found[:12]}...) than the model ({model.backbone.name}, {wanted[:12]}...), or on one trained with them"
        )
    try:
        load_strictly(model.temporal_state(), saved.temporal_state())
    except ValueError as error:
        raise ValueError(f"init_from {source}: {error}. Give the run the model.adapter and pooling of it") from error


def weights_hash(source: str | Path) -> str:
    """SHA-256 of `model.safetensors` of a saved model."""
    return hash_file(find_folder(source) / "model.safetensors")


def load_model(
    name: str,
    pretrained: str | None = None,
    num_frames: int = 8,
    labels: list[str] | None = None,
    templates: str | list[str] | None = None,
    revision: str | None = None,
) -> VideoCLIP:
    """A saved model by folder or repository, or a plain CLIP by name (`tiny`, `ViT-B-16`), in evaluation mode.

    Args:
        name, revision: of a saved model, see `from_pretrained`; or the backbone of a plain CLIP.
        pretrained, num_frames: of a plain CLIP.
        labels: class names; None keeps those of a saved model.
        templates: for the names; None keeps those of a saved model, and is `single` for a plain CLIP.

    Raises:
        ValueError: a linear head that was trained on other classes; `pretrained` for a saved model, or `revision` for
            a plain CLIP.
    """
    saved = Path(name).is_dir() or ("/" in name and ":" not in name)
    if saved and pretrained is not None:
        raise ValueError(f"pretrained={pretrained!r} has no meaning for {name}, a saved model: leave it out")
    if not saved and revision is not None:
        raise ValueError(f"revision={revision!r} has no meaning for {name}, a plain CLIP: leave it out")
    if saved:
        model = from_pretrained(name, revision)
    else:
        model = create_model(name, pretrained, adapter="none", num_frames=num_frames).eval()
        templates = templates or "single"
    wanted = model.labels if labels is None else labels
    unnamed = not model.labels and not model.head.needs_text  # converted: its classes are those of its data set
    if not model.head.needs_text and wanted != model.labels and not unnamed:
        raise ValueError(
            f"{name} has a linear head for {len(model.labels)} classes that are not the {len(wanted)} asked for; "
            "only a text head can name new classes"
        )
    if wanted and (wanted != model.labels or templates is not None):
        model.set_labels(wanted, templates if templates is not None else model.templates)
    return model


def find_folder(source: str | Path, revision: str | None = None) -> Path:
    """The folder `source`, or a copy in the cache of the repository of that id."""
    if not Path(source).is_dir():
        return _download(str(source), revision)
    if revision is not None:
        raise ValueError(f"revision={revision!r} was given for {source}, a folder here, which has no revisions")
    return Path(source)


def read_record(folder: Path, source: str | Path | None = None) -> dict[str, Any]:
    """`config.json` of a model folder, checked; `source` is what it goes by in messages."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{source or folder} holds no model: it has no config.json")
    record = read_json(path)
    if record.get("model_type") != "clipvid":
        raise ValueError(f"{path} is not the config of a clipvid model (model_type is not 'clipvid')")
    missing = [key for key in _RECORD_KEYS if key not in record]
    backbone = record.get("backbone")
    if isinstance(backbone, dict):
        missing += [f"backbone.{key}" for key in _BACKBONE_KEYS if key not in backbone]
    if missing:
        raise ValueError(f"{path} is incomplete: it lacks {', '.join(missing)}")
    kinds = {"format_version": int, "backbone": dict, "model": dict} | ({"files": dict} if "files" in record else {})
    wrong = [key for key, kind in kinds.items() if not isinstance(record[key], kind)]
    if wrong:
        raise ValueError(f"{path} is damaged: {', '.join(wrong)} is not what it should be. Bring a whole copy of it")
    if record["format_version"] > FORMAT_VERSION:
        raise ValueError(
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
        raise ValueError(f"{path} is damaged: it is no JSON ({error}). Bring a whole copy of it") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a JSON object")
    return content


def read_weights(folder: Path, record: dict[str, Any]) -> dict[str, Tensor]:
    """The trained tensors of a model folder, when the files are those that `config.json` was written with."""
    for name, digest in record.get("files", {}).items():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is not whole: it has no {name}")
        if hash_file(folder / name) != digest:
            raise ValueError(
                f"{folder / name} is damaged or was changed: its SHA-256 is not the one in config.json. Bring a whole "
                "copy of it; where the change is meant, take its entry out of `files` in config.json"
            )
    return read_tensors(folder / "model.safetensors")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        FileNotFoundError, ValueError: no such file, or another kind of file.
    """
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: it is no safetensors file ({error})") from error


def hub_error(error: Exception, repo_id: str, revision: str | None = None) -> OSError:
    """What the Hub's client raised, as one error that says what to do."""
    if isinstance(error, RevisionNotFoundError):
        return FileNotFoundError(f"{repo_id} on the Hub has no revision {revision!r}; give a branch, tag or commit")
    if isinstance(error, GatedRepoError):
        return PermissionError(f"{repo_id} on the Hub is gated: ask for access on its page, then {LOGIN}")
    if isinstance(error, RepositoryNotFoundError):
        return FileNotFoundError(f"the Hub has no repository {repo_id}, or it is private ({LOGIN})")
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        return FileNotFoundError(
            f"{repo_id} is not (or not whole) in the cache, and the Hub cannot be asked: HF_HUB_OFFLINE is set, or "
            f"there is no connection to it ({error})"
        )
    if not isinstance(error, HfHubHTTPError):
        return ConnectionError(f"the connection to the Hub failed for {repo_id}: {error or type(error).__name__}")
    status, said = error.response.status_code, error.server_message or error.response.reason_phrase
    advice = {
        401: LOGIN,
        403: "your token has no right to this; make one with write access (https://huggingface.co/settings/tokens)",
        409: "somebody else changed the repository at the same time; try again",
        412: "somebody else changed the repository at the same time; try again",
        429: "too many requests; wait a while and try again",
    }.get(status, "try again later" if status >= 500 else "see what the server says")
    kind = PermissionError if status in (401, 403) else ConnectionError
    return kind(f"the Hub refused {repo_id} ({status}: {said}): {advice}")


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


def _load_backbone(folder: Path, record: dict[str, Any], config: ModelConfig) -> Backbone:
    wanted = record["backbone"]
    if not wanted["embedded"]:
        if wanted["name"].startswith("local-dir:"):
            raise ValueError(f"{folder}/config.json names a backbone of another machine: {wanted['name']}")
        return load_backbone(wanted["name"], wanted["pretrained"], config.image_size)
    backbone = load_backbone(f"local-dir:{folder / 'backbone'}")
    backbone.name, backbone.pretrained = wanted["name"], wanted["pretrained"]
    return backbone


def _check_fingerprint(source: str | Path, record: dict[str, Any], backbone: Backbone) -> None:
    wanted, found = record["backbone"], backbone.fingerprint()
    if found != wanted["sha256"]:
        raise ValueError(
            f"{source} was trained on another backbone: {wanted['name']} (pretrained={wanted['pretrained']}) has "
            f"weights with SHA-256 {found[:12]}..., expected {wanted['sha256'][:12]}..."
        )
