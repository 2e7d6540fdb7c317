"""Model folders: from disk, or from the Hugging Face Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors.torch import load_file

from clipvid.backbone import load_backbone
from clipvid.choices import build_config
from clipvid.model import FORMAT_VERSION, ModelConfig, VideoCLIP, load_strictly

_RECORD_KEYS = ("format_version", "backbone", "model", "num_classes", "labels", "templates")


def from_pretrained(source: str | Path, revision: str | None = None) -> VideoCLIP:
    """A saved model, in evaluation mode.

    Args:
        source: a folder that `save_pretrained` wrote, or the id of such a repository on the Hub.
        revision: branch, tag or commit on the Hub.

    Raises:
        FileNotFoundError: no folder of that name, and no repository either.
        ValueError: not a model of clipvid, weights that do not fit, or another backbone than the one trained on.
    """
    folder = Path(source) if Path(source).is_dir() else _download(str(source), revision)
    record = _read_record(folder)
    config = build_config(ModelConfig, record["model"], f"{folder}/config.json")
    model = VideoCLIP(_load_backbone(folder, record, config), config, record["num_classes"])
    load_strictly(model.saved_state(), load_file(folder / "model.safetensors"))
    if record["labels"]:
        model.set_labels(record["labels"], record["templates"])
    pixels = json.loads((folder / "video_preprocessor_config.json").read_text())
    model.preprocessing = {key: value for key, value in pixels.items() if key in ("sampling", "resize")}
    return model.eval()


def _download(repo_id: str, revision: str | None) -> Path:
    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:
        raise FileNotFoundError(
            f"{repo_id!r} is no folder here, and the Hub gave no such repository: {error}"
        ) from error


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no model: it has no config.json")
    record = json.loads(path.read_text())
    if not isinstance(record, dict) or record.get("model_type") != "clipvid":
        raise ValueError(f"{path} is not the config of a clipvid model (model_type is not 'clipvid')")
    missing = [key for key in _RECORD_KEYS if key not in record]
    if missing:
        raise ValueError(f"{path} is incomplete: it lacks {', '.join(missing)}")
    if record["format_version"] > FORMAT_VERSION:
        raise ValueError(
            f"{path} has format {record['format_version']}, this clipvid reads up to {FORMAT_VERSION}: upgrade clipvid"
        )
    return record


def _load_backbone(folder: Path, record: dict[str, Any], config: ModelConfig) -> Any:
    wanted = record["backbone"]
    if wanted["embedded"]:
        backbone = load_backbone(f"local-dir:{folder / 'backbone'}")
        backbone.name, backbone.pretrained = wanted["name"], wanted["pretrained"]
    else:
        backbone = load_backbone(wanted["name"], wanted["pretrained"], config.image_size)
    if backbone.fingerprint() != wanted["sha256"]:
        raise ValueError(
            f"{folder} was trained on another backbone: {wanted['name']} (pretrained={wanted['pretrained']}) has "
            f"weights with SHA-256 {backbone.fingerprint()[:12]}..., expected {wanted['sha256'][:12]}..."
        )
    return backbone
