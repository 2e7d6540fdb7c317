"""Files of a model folder. `clipvid.hub` reads them."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

from clipvid.files import hash_file, replace_together, write_json
from clipvid.registry import config_to_choice

FORMAT_VERSION = 2  # the newest; models with one label per video are written in the first
CONFIG = "config.json"
BACKBONE_FOLDER = "backbone"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
LORA_FOLDER = "lora"
LORA_WEIGHTS = f"{LORA_FOLDER}/adapter_model.safetensors"
LORA_CONFIG = f"{LORA_FOLDER}/adapter_config.json"
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


def save_model(model: Any, folder: Path, self_contained: bool = False, max_shard_size: int | None = None) -> None:
    """Write the folder of a `VideoCLIP`: config, trained weights, preprocessing, and the backbone if it is not public.

    Existing files of a model are replaced together, see `replace_together`. Other files stay.

    Args:
        model: The `VideoCLIP`.
        folder: Target folder, created if it does not exist.
        self_contained: Let `model.safetensors` also contain the trained weights of `lora/` and `backbone/`.
        max_shard_size: Size in bytes from which `model.safetensors` is split into several files with an index.
    """
    with replace_together(folder, owned_files(folder), last=CONFIG) as staged:
        trained = model.trained_state() if self_contained else model.saved_state()
        states, index = _shards(trained, max_shard_size)
        if not model.backbone.is_public:
            model.backbone.save(staged / BACKBONE_FOLDER)
        lora_state = model.lora_state()
        if lora_state:
            states[LORA_WEIGHTS] = lora_state
            lora = copy.copy(model.peft_config["default"])
            lora.inference_mode = True
            lora.save_pretrained(staged / LORA_FOLDER)
        for name, state in states.items():
            _write_tensors(staged / name, state)
        if index is not None:
            write_json(staged / WEIGHTS_INDEX, index)
        write_json(staged / "video_preprocessor_config.json", _pixel_record(model))
        backbone_files = sorted(path.name for path in (staged / BACKBONE_FOLDER).glob("*"))
        files = {name: hash_file(staged / name) for name in (*states, *([] if index is None else [WEIGHTS_INDEX]))}
        write_json(staged / CONFIG, _config_record(model, backbone_files) | {"files": files})


def owned_files(folder: Path) -> set[str]:
    """Return the files that the config of a saved model lists, or an empty set without such a config.

    Paths outside the folder are omitted.
    """
    try:
        record = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return set()
    if not isinstance(record, dict) or record.get("model_type") != "clipvid":
        return set()
    names = set(record["files"]) if isinstance(record.get("files"), dict) else set()
    names |= {LORA_CONFIG} if LORA_WEIGHTS in names else set()
    backbone = record.get("backbone")
    if isinstance(backbone, dict) and backbone.get("embedded") is True:
        from clipvid.backbone import BACKBONE_FILES  # slow to import, and configs import this module

        listed = backbone.get("files", BACKBONE_FILES)
        names |= {f"{BACKBONE_FOLDER}/{name}" for name in listed if isinstance(listed, list | tuple)}
    return {name for name in names if is_weight_file(name) or _is_part(name)}


def is_weight_file(name: str) -> bool:
    """Return True for the names of trained weights in a model folder, and of their index."""
    return name in (WEIGHTS, WEIGHTS_INDEX, LORA_WEIGHTS) or _SHARD.fullmatch(name) is not None


def _shards(
    state: dict[str, Tensor], max_size: int | None
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any] | None]:
    """Return the tensors by file, and the index if there are several files."""
    if max_size is None or sum(tensor.nbytes for tensor in state.values()) <= max_size:
        return {WEIGHTS: state}, None
    split = split_torch_state_dict_into_shards(state, max_shard_size=max_size)
    shards = {file: {name: state[name] for name in names} for file, names in split.filename_to_tensors.items()}
    return shards, {"metadata": split.metadata, "weight_map": split.tensor_to_filename}


def _is_part(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return len(parts) == 2 and parts[0] in (LORA_FOLDER, BACKBONE_FOLDER) and parts[1] != ".." and "\\" not in name


def _write_tensors(path: Path, state: dict[str, Tensor]) -> None:
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    save_file(tensors, path, metadata={"format": "pt"})


def _config_record(model: Any, backbone_files: list[str]) -> dict[str, Any]:
    backbone, parts = model.backbone, model.config.parts
    sha256, base_sha256 = model.fingerprint(), model.base_fingerprint()
    unsaved = {"init_from"} if model.config.multi_label else {"init_from", "multi_label"}
    return {
        "model_type": "clipvid",
        "format_version": FORMAT_VERSION if model.config.multi_label else 1,
        "backbone": {
            "name": backbone.name,
            "pretrained": backbone.pretrained,
            "sha256": sha256,
            "embedded": not backbone.is_public,
        }
        | ({"files": backbone_files} if backbone_files else {})
        | ({"base_sha256": base_sha256} if base_sha256 != sha256 else {}),
        "model": {name: value for name, value in dataclasses.asdict(model.config).items() if name not in unsaved}
        | {"adapter": [config_to_choice(*item) for item in parts.adapters.items()] or "none"}
        | {"tune": parts.tuning.record()},
        "num_classes": model.head.num_classes,
        "labels": model.labels,
        "templates": list(model.templates),
    } | ({} if model.origin is None else {"origin": dataclasses.asdict(model.origin)})


def _pixel_record(model: Any) -> dict[str, Any]:
    sizes = {"num_frames": model.num_frames, "image_size": model.image_size}
    config, backbone = model.config, model.backbone
    pixels = {"image_mean": config.pixel_mean or backbone.mean, "image_std": config.pixel_std or backbone.std}
    return sizes | pixels | ({} if model.preprocessing is None else model.preprocessing.record())
