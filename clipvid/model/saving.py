"""What a model folder holds, but for how it is read (`clipvid.hub`)."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from clipvid.files import hash_file
from clipvid.model.tuning import resolve_tuning, tuning_record
from clipvid.registry import config_to_choice

FORMAT_VERSION = 1
LORA_FOLDER = "lora"
LORA_WEIGHTS = f"{LORA_FOLDER}/adapter_model.safetensors"


def save_model(model: Any, folder: Path) -> None:
    """Write the folder of a `VideoCLIP`: config, what was trained, how frames are prepared, and the backbone's weights
    where its name alone does not bring them back."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("backbone", LORA_FOLDER):
        shutil.rmtree(folder / part, ignore_errors=True)
    if not model.backbone.fetchable:
        model.backbone.save(folder / "backbone")
    states = {"model.safetensors": model.saved_state(), LORA_WEIGHTS: model.lora_state()}
    if not states[LORA_WEIGHTS]:
        del states[LORA_WEIGHTS]
    else:
        lora = copy.copy(model.peft_config["default"])
        lora.inference_mode = True
        lora.save_pretrained(folder / LORA_FOLDER)
    for name, state in states.items():
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
        save_file(tensors, folder / name, metadata={"format": "pt"})
    for name, content in (
        ("config", _config_record(model) | {"files": {name: hash_file(folder / name) for name in states}}),
        ("video_preprocessor_config", _pixel_record(model)),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")


def _config_record(model: Any) -> dict[str, Any]:
    backbone = model.backbone
    return {
        "model_type": "clipvid",
        "format_version": FORMAT_VERSION,
        "backbone": {
            "name": backbone.name,
            "pretrained": backbone.pretrained,
            "sha256": model.fingerprint(),
            "embedded": not backbone.fetchable,
        },
        "model": {name: value for name, value in dataclasses.asdict(model.config).items() if name != "init_from"}
        | {"adapter": [config_to_choice(*item) for item in model.adapter_configs.items()] or "none"}
        | {"tune": tuning_record(resolve_tuning(model.config.tune))},
        "num_classes": None if model.head.needs_text else model.head.linear.out_features,
        "labels": model.labels,
        "templates": list(model.templates),
    }


def _pixel_record(model: Any) -> dict[str, Any]:
    sizes = {"num_frames": model.num_frames, "image_size": model.image_size}
    return sizes | {"image_mean": model.backbone.mean, "image_std": model.backbone.std} | model.preprocessing
