"""Model folders: read from disk or from the Hugging Face Hub, strictly; only safetensors and JSON, no code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from clipvid import InputError
from clipvid.backbone import BACKBONE_FILES, Backbone, load_backbone
from clipvid.backbone.state_dicts import load_strictly
from clipvid.data.preprocessing import Preprocessing
from clipvid.hub.folder import find_folder, read_record, read_weights
from clipvid.hub.strict import check_dtypes, check_finite, check_regular, check_sizes, read_json, read_tensors
from clipvid.model.config import ModelConfig
from clipvid.model.factory import assemble_model, create_model
from clipvid.model.saving import LORA_WEIGHTS
from clipvid.model.video_clip import VideoCLIP
from clipvid.registry import UnknownNameError, build_config


def from_pretrained(source: str | Path, revision: str | None = None, backbone: Backbone | None = None) -> VideoCLIP:
    """Load a saved model, in evaluation mode.

    Args:
        source: a folder that `save_pretrained` wrote, or the id of such a repository on the Hub.
        revision: branch, tag or commit on the Hub.
        backbone: of a model in memory, to share its frozen weights instead of loading them again.

    Raises:
        FileNotFoundError: no folder of that name, and no such repository or revision either.
        PermissionError, ConnectionError: the Hub refuses, or fails.
        InputError: not a model of clipvid, damaged files, weights that do not fit, another backbone than the one
            trained on, or an adapter, head or pooling of a package that is not installed.
    """
    folder = find_folder(source, revision)
    record = read_record(folder, source)
    state = read_weights(folder, record)
    try:
        return _build(folder, source, record, state, backbone)
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise InputError(f"{folder}/config.json is damaged: its values make no model ({error!r})") from error


def _build(
    folder: Path, source: str | Path, record: dict[str, Any], state: dict[str, Tensor], backbone: Backbone | None
) -> VideoCLIP:
    try:
        config: ModelConfig = build_config(ModelConfig, record["model"], f"{folder}/config.json")
    except UnknownNameError as error:
        raise InputError(
            f"{source} needs the {error.kind} {error.name!r}, which is not installed ({error}): install the package "
            "that provides it, or name its module with --plugin MODULE (in Python, import it first)"
        ) from error
    if backbone is None:
        backbone = _load_backbone(folder, record, config)
    elif not config.parts.tuning.keeps_backbone:
        raise InputError(
            f"{source} has a backbone of its own (tune={config.tune}): it cannot share that of another model"
        )
    _check_fingerprint(source, record, backbone)
    model = assemble_model(backbone, config, record["num_classes"], record["backbone"].get("base_sha256")).eval()
    model = model.to(next(backbone.vision.parameters()).device)
    if hasattr(model, "peft_config"):
        lora = read_tensors(folder / LORA_WEIGHTS)
        check_dtypes(model.lora_state(), lora, folder / LORA_WEIGHTS)
        load_strictly(model.lora_state(), lora)
    trained, saved = model.trained_state(), model.saved_state()
    own = trained if state.keys() == trained.keys() else saved
    check_dtypes(own, state, folder)
    load_strictly(own, state)
    if record["labels"]:
        model.set_labels(record["labels"], record["templates"])
    pixels = folder / "video_preprocessor_config.json"
    model.preprocessing = Preprocessing.from_record(read_json(pixels), str(pixels))
    return model


def is_saved(name: str) -> bool:
    """Return whether `name` is a folder or a repository, and not a plain CLIP such as `ViT-B-16`."""
    return Path(name).is_dir() or ("/" in name and ":" not in name)


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
    saved = is_saved(name)
    if saved and pretrained is not None:
        raise InputError(f"pretrained={pretrained!r} has no meaning for {name}, a saved model: leave it out")
    if not saved and revision is not None:
        raise InputError(f"revision={revision!r} has no meaning for {name}, a plain CLIP: leave it out")
    if saved:
        model = from_pretrained(name, revision)
    else:
        model = create_model(name, pretrained, adapter="none", num_frames=num_frames).eval()
        templates = templates or "single"
    names = model.labels if labels is None else labels
    unnamed = not model.labels and not model.head.needs_text  # converted: its classes are those of its data set
    if not model.head.needs_text and names != model.labels and not unnamed:
        raise InputError(
            f"{name} has a linear head for {len(model.labels)} classes that are not the {len(names)} asked for; "
            "only a text head can name new classes"
        )
    if names and (names != model.labels or templates is not None):
        model.set_labels(names, templates if templates is not None else model.templates)
    return model


def _load_backbone(folder: Path, record: dict[str, Any], config: ModelConfig) -> Backbone:
    saved = record["backbone"]
    if not saved["embedded"]:
        if saved["name"].startswith("local-dir:"):
            raise InputError(f"{folder}/config.json names a backbone of another machine: {saved['name']}")
        return load_backbone(saved["name"], saved["pretrained"], config.image_size)
    files = [folder / "backbone" / name for name in BACKBONE_FILES]
    for path in files:
        if path.exists():
            check_regular(path)
    content = read_json(files[0]).get("model_cfg")
    check_sizes(content, [path for path in files if path.suffix == ".safetensors"], files[0], "model_cfg")
    backbone = load_backbone(f"local-dir:{folder / 'backbone'}")
    check_finite(backbone.open_clip_state_dict(), folder / "backbone")
    backbone.name, backbone.pretrained = saved["name"], saved["pretrained"]
    return backbone


def _check_fingerprint(source: str | Path, record: dict[str, Any], backbone: Backbone) -> None:
    saved, fingerprint = record["backbone"], backbone.fingerprint()
    if fingerprint != saved["sha256"]:
        raise InputError(
            f"{source} was trained on another backbone: {saved['name']} (pretrained={saved['pretrained']}) has "
            f"weights with SHA-256 {fingerprint[:12]}..., expected {saved['sha256'][:12]}..."
        )
