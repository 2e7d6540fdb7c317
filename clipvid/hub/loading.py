"""Loading of model folders from disk or the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from torch import Tensor

from clipvid import InputError
from clipvid.backbone import BACKBONE_FILES, TINY, Backbone, is_weight_tag, load_backbone
from clipvid.backbone.state_dicts import load_strictly
from clipvid.data.preprocessing import Preprocessing
from clipvid.hub.folder import find_folder, is_xclip, read_record, read_weights
from clipvid.hub.strict import check_dtypes, check_finite, check_model_file, check_sizes, read_json, read_tensors
from clipvid.hub.xclip_folder import read_xclip
from clipvid.model.config import ModelConfig
from clipvid.model.factory import assemble_model, create_model
from clipvid.model.origin import Origin
from clipvid.model.saving import LORA_WEIGHTS
from clipvid.model.video_clip import VideoCLIP
from clipvid.registry import UnknownNameError, build_config, check_type


def from_pretrained(source: str | Path, revision: str | None = None, backbone: Backbone | None = None) -> VideoCLIP:
    """Load a saved model, in evaluation mode.

    Args:
        source: Folder written by `save_pretrained`, or the id of such a repository on the Hub. Models of transformers'
            `XCLIPModel` are read, too (`microsoft/xclip-base-patch32`), without class names.
        revision: Branch, tag or commit on the Hub.
        backbone: Backbone of a model in memory, to share its frozen weights instead of loading them again.

    Raises:
        FileNotFoundError: The folder, repository or revision does not exist.
        PermissionError: The Hub refuses access.
        ConnectionError: The connection to the Hub failed.
        InputError: The folder is not a model of clipvid, files are damaged, or weights or backbone do not fit. Also
            raised if an adapter, head or pooling comes from a package that is not installed.
    """
    folder = find_folder(source, revision)
    if is_xclip(folder):
        if backbone is not None:
            raise InputError(f"{source} has a trained CLIP, so it cannot share that of another model")
        return read_xclip(folder, source)
    record = read_record(folder, source)
    state = read_weights(folder, record)
    try:
        return _build(folder, source, record, state, backbone)
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise InputError(f"{folder}/config.json is damaged: its values do not form a model ({error!r})") from error


def _build(
    folder: Path, source: str | Path, record: dict[str, Any], state: dict[str, Tensor], backbone: Backbone | None
) -> VideoCLIP:
    try:
        config: ModelConfig = build_config(ModelConfig, record["model"], f"{folder}/config.json")
    except UnknownNameError as error:
        raise InputError(
            f"{source} needs the {error.kind} {error.name[:80]!r}, which is not installed ({error}): install the "
            "package that provides it, or add --plugin MODULE (in Python, import the module first)"
        ) from error
    if backbone is None:
        backbone = _load_backbone(folder, record, config)
    elif not config.parts.tuning.keeps_backbone:
        raise InputError(
            f"{source} has a trained backbone (tune={config.tune}), so it cannot share that of another model"
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
    if "origin" in record:
        model.origin = build_config(Origin, record["origin"], f"{folder}/config.json: origin")
    return model


def is_saved(name: str) -> bool:
    """Return True if `name` is a folder or repository, and not a plain CLIP such as `ViT-B-16`."""
    return Path(name).is_dir() or ("/" in name and ":" not in name)


def load_model(
    name: str,
    pretrained: str | None = None,
    num_frames: int | None = None,
    labels: list[str] | None = None,
    templates: str | list[str] | None = None,
    revision: str | None = None,
) -> VideoCLIP:
    """Load a saved model by folder or repository, or a plain CLIP by name (`tiny`, `ViT-B-16`), in evaluation mode.

    Args:
        name: A saved model, see `from_pretrained`, or the backbone of a plain CLIP.
        pretrained: Weights of a plain CLIP.
        num_frames: Number of frames of a plain CLIP, 8 by default.
        labels: Class names. None keeps those of a saved model.
        templates: Templates of the names. None keeps those of a saved model, and means `single` for a plain CLIP.
        revision: Revision of a saved model, see `from_pretrained`.

    Raises:
        InputError: A linear head was trained on other classes, `pretrained` or another `num_frames` is set for a saved
            model, or `revision` for a plain CLIP.
    """
    saved = is_saved(name)
    if saved and pretrained is not None:
        raise InputError(f"pretrained={pretrained!r} is not used for {name}, a saved model; remove it")
    if not saved and revision is not None:
        raise InputError(f"revision={revision!r} is not used for {name}, a plain CLIP; remove it")
    if saved:
        model = from_pretrained(name, revision)
        if num_frames not in (None, model.num_frames):
            raise InputError(
                f"num_frames={num_frames} is not used for {name}, a saved model that takes {model.num_frames} frames; "
                "remove it"
            )
    else:
        frames = 8 if num_frames is None else num_frames
        model = create_model(name, pretrained, adapter="none", num_frames=frames).eval()
        templates = templates or "single"
    names = model.labels if labels is None else labels
    unnamed = not model.labels and not model.head.needs_text  # converted models have the classes of their data set
    if not model.head.needs_text and names != model.labels and not unnamed:
        raise InputError(
            f"{name} has a linear head for {len(model.labels)} classes that differ from the {len(names)} requested; "
            "only a text head supports new classes. If they are some of its classes, give all of these"
        )
    if names and (names != model.labels or templates is not None):
        model.set_labels(names, templates if templates is not None else model.templates)
    return model


def _load_backbone(folder: Path, record: dict[str, Any], config: ModelConfig) -> Backbone:
    saved = record["backbone"]
    if not saved["embedded"]:
        _check_named_backbone(folder, saved["name"], saved["pretrained"])
        return load_backbone(saved["name"], saved["pretrained"], config.image_size)
    files = [folder / "backbone" / name for name in BACKBONE_FILES]
    for path in files:
        if path.exists():
            check_model_file(path)
    content = read_json(files[0])
    weights = [path for path in files if path.suffix == ".safetensors"]
    check_sizes(content.get("model_cfg"), weights, files[0], "model_cfg")
    pixels = check_type(content.get("preprocess_cfg", {}), dict[str, Any], f"{files[0]}: preprocess_cfg")
    for name in ("mean", "std"):
        if name in pixels:
            check_type(pixels[name], tuple[float, float, float], f"{files[0]}: preprocess_cfg.{name}")
    backbone = load_backbone(f"local-dir:{folder / 'backbone'}")
    check_finite(backbone.open_clip_state_dict(), folder / "backbone")
    backbone.name, backbone.pretrained = saved["name"], saved["pretrained"]
    return backbone


def _check_named_backbone(folder: Path, name: str, pretrained: str | None) -> None:
    """Check that a folder from others makes clipvid read nothing but weights that open_clip or the user named.

    Raises:
        InputError: A folder or a file of weights, or a repository that was never downloaded here.
    """
    if name.startswith("local-dir:"):
        raise InputError(f"{folder}/config.json names a backbone of another machine: {name}")
    if not name.startswith("hf-hub:"):
        if name != TINY and not is_weight_tag(name, pretrained):
            raise InputError(
                f"{folder}/config.json names the weights pretrained={pretrained!r} of {name}, which are not a tag of "
                "open_clip. Only the person who trained the model has them"
            )
        return
    repository = name.removeprefix("hf-hub:")
    try:
        cached = try_to_load_from_cache(repository, BACKBONE_FILES[0])
    except ValueError:
        raise InputError(f"{folder}/config.json names the backbone {name}, which is not a name on the Hub") from None
    if not isinstance(cached, str):
        raise InputError(
            f"{folder}/config.json names the CLIP of another repository, {repository}, which is not on this machine. "
            f"If you trust it, download it first: hf download {repository}"
        )


def _check_fingerprint(source: str | Path, record: dict[str, Any], backbone: Backbone) -> None:
    saved, fingerprint = record["backbone"], backbone.fingerprint()
    if fingerprint != saved["sha256"]:
        raise InputError(
            f"{source} was trained on another backbone: {saved['name']} (pretrained={saved['pretrained']}) has "
            f"weights with SHA-256 {fingerprint[:12]}..., expected {saved['sha256'][:12]}..."
        )
