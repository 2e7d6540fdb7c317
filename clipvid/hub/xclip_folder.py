"""Folders of transformers' `XCLIPModel`, such as `microsoft/xclip-base-patch32`, read as strictly as clipvid's own."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from clipvid import InputError
from clipvid.convert.kinds import KINDS
from clipvid.convert.openai_names import IMAGENET_PIXELS, PixelStatistics
from clipvid.convert.xclip import from_xclip_transformers
from clipvid.data.preprocessing import Preprocessing, Resize
from clipvid.files import one_line
from clipvid.hub.strict import check_sizes, read_json, read_tensors
from clipvid.model.origin import Origin
from clipvid.model.saving import WEIGHTS, WEIGHTS_INDEX
from clipvid.model.video_clip import VideoCLIP
from clipvid.registry import check_type

MODEL_TYPE = "xclip"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
VOCABULARIES = ("vocab.json", "tokenizer.json")
XCLIP_FILES = ("config.json", WEIGHTS, WEIGHTS_INDEX, "model-*.safetensors", *PROCESSORS, *VOCABULARIES)
_PUBLISHED = "microsoft/xclip-"  # released under MIT
_SPECIAL = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}  # in open_clip and transformers
_RESIZE: dict[int, Resize] = {2: "bilinear_center", 3: "shortest_center"}  # PIL's numbers of bilinear and bicubic


def read_xclip(folder: Path, source: str | Path) -> VideoCLIP:
    """Build the model in a folder of transformers' `XCLIPModel`, in evaluation mode and without class names.

    Args:
        folder: Folder with config, safetensors and perhaps the files of the processor.
        source: Name of the model in messages and on its card.

    Raises:
        FileNotFoundError: The folder has no safetensors file.
        InputError: A file is damaged, the config does not fit the weights, or it has options that clipvid lacks.
    """
    path = folder / "config.json"
    record = read_json(path)
    files = weight_files(folder)
    check_sizes(record, files, path, "config")
    config = _read_config(record, path)
    statistics, preprocessing = _read_processor(folder, config.vision_config.image_size)
    state: dict[str, Tensor] = {}
    for file in files:
        part = read_tensors(file)
        twice = state.keys() & part.keys()
        if twice:
            raise InputError(f"{file} is damaged: {min(twice)} is also in another file of the model")
        state |= part
    heads = config.vision_config.num_attention_heads, config.text_config.num_attention_heads
    try:
        model = from_xclip_transformers(state, heads, config.vision_config.drop_path_rate, statistics)
    except KeyError as error:
        raise InputError(f"{folder}: the weights lack {error}") from None
    _compare_sizes(model, config, path)
    _check_vocabulary(folder, model)
    model.preprocessing = preprocessing
    release = KINDS[MODEL_TYPE].origin
    license_name = release.license if str(source).startswith(_PUBLISHED) else "unknown"
    model.origin = Origin(MODEL_TYPE, f"X-CLIP ({Path(source).name})", license_name, release.paper)
    return model


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of the model.

    Raises:
        FileNotFoundError: There are none, or one that the index names is missing.
    """
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if not (folder / WEIGHTS_INDEX).exists():
        raise FileNotFoundError(
            f"{folder} has no {WEIGHTS}, and pickled weights are not read. Convert them with transformers: "
            "XCLIPModel.from_pretrained(...).save_pretrained(...)"
        )
    index = read_json(folder / WEIGHTS_INDEX)
    places = check_type(index.get("weight_map"), dict[str, str], f"{folder / WEIGHTS_INDEX}: weight_map")
    names = sorted(set(places.values()))
    outside = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
    if outside:
        raise InputError(
            f"{folder / WEIGHTS_INDEX} names {outside[0][:80]!r}, expected safetensors files of the folder"
        )
    return [folder / name for name in names]


def _read_config(record: dict[str, Any], path: Path) -> Any:
    """Return transformers' `XCLIPConfig`, checked for options that the model here lacks."""
    from transformers import XCLIPConfig

    try:
        config: Any = XCLIPConfig.from_dict(record)
        vision, text = config.vision_config, config.text_config
        embed, mit = config.projection_dim, vision.mit_hidden_size
        expected = {
            "text_config.hidden_act": (text.hidden_act, "quick_gelu"),
            "vision_config.hidden_act": (vision.hidden_act, "quick_gelu"),
            "prompt_hidden_act": (config.prompt_hidden_act, "quick_gelu"),
            "text_config.layer_norm_eps": (text.layer_norm_eps, 1e-5),
            "vision_config.layer_norm_eps": (vision.layer_norm_eps, 1e-5),
            "text_config.intermediate_size": (text.intermediate_size, 4 * text.hidden_size),
            "vision_config.intermediate_size": (vision.intermediate_size, 4 * vision.hidden_size),
            "vision_config.num_channels": (vision.num_channels, 3),
            "the type of vision_config.image_size": (type(vision.image_size).__name__, "int"),
            "vision_config.mit_hidden_size": (mit, embed),
            "vision_config.mit_intermediate_size": (vision.mit_intermediate_size, 4 * mit),
            "vision_config.mit_num_attention_heads": (vision.mit_num_attention_heads, max(1, mit // 64)),
            "prompt_num_attention_heads": (config.prompt_num_attention_heads, max(1, embed // 64)),
            "vision_config.hidden_size": (vision.hidden_size % vision.num_attention_heads, 0),
            "text_config.hidden_size": (text.hidden_size % text.num_attention_heads, 0),
        }
    except (StrictDataclassError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise InputError(f"{path} is damaged: it is not the config of an XCLIPModel ({one_line(error)})") from None
    for name, (value, supported) in expected.items():
        if value != supported:
            what = "is not a multiple of the number of heads" if name.endswith(".hidden_size") else f"is {value}"
            raise InputError(f"{path}: {name} {what}, which clipvid does not support; expected {supported}")
    return config


def _compare_sizes(model: VideoCLIP, config: Any, path: Path) -> None:
    """Raise InputError for sizes in the config that are not those of the weights, from which the model is built."""
    vision, text = config.vision_config, config.text_config
    built, layers = model.backbone.config, model.config.parts
    sizes = {
        "vision_config.hidden_size": (vision.hidden_size, built["vision_cfg"]["width"]),
        "vision_config.num_hidden_layers": (vision.num_hidden_layers, built["vision_cfg"]["layers"]),
        "vision_config.image_size": (vision.image_size, built["vision_cfg"]["image_size"]),
        "vision_config.patch_size": (vision.patch_size, built["vision_cfg"]["patch_size"]),
        "vision_config.num_frames": (vision.num_frames, model.num_frames),
        "vision_config.mit_num_hidden_layers": (vision.mit_num_hidden_layers, layers.pooling.config.layers),
        "prompt_layers": (config.prompt_layers, layers.head.config.prompt_layers),
        "projection_dim": (config.projection_dim, built["embed_dim"]),
        "text_config.hidden_size": (text.hidden_size, built["text_cfg"]["width"]),
        "text_config.num_hidden_layers": (text.num_hidden_layers, built["text_cfg"]["layers"]),
        "text_config.vocab_size": (text.vocab_size, built["text_cfg"]["vocab_size"]),
        "text_config.max_position_embeddings": (text.max_position_embeddings, built["text_cfg"]["context_length"]),
    }
    for name, (configured, stored) in sizes.items():
        if configured != stored:
            raise InputError(f"{path}: {name}={configured} does not fit the weights, which have {stored}")


def _check_vocabulary(folder: Path, model: VideoCLIP) -> None:
    """Raise InputError unless the tokenizer in the folder is CLIP's, which is used to read class names."""
    vocabulary = {_SPECIAL.get(token, token): number for token, number in model.text.tokenizer.encoder.items()}
    if model.backbone.config["text_cfg"]["vocab_size"] != len(vocabulary):
        size = model.backbone.config["text_cfg"]["vocab_size"]
        raise InputError(
            f"{folder}: its text tower has {size} tokens, expected the {len(vocabulary)} of CLIP's tokenizer"
        )
    for name in VOCABULARIES:
        if not (folder / name).exists():
            continue
        content = read_json(folder / name)
        stored = content if name == "vocab.json" else (content.get("model") or {}).get("vocab")
        if stored != vocabulary:
            raise InputError(f"{folder / name} is not the vocabulary of CLIP's tokenizer, the only one for X-CLIP here")


def _read_processor(folder: Path, image_size: int) -> tuple[PixelStatistics, Preprocessing]:
    """Return the pixel statistics and the resizing of an image processor; those of VideoMAE's without a file.

    Sizes that differ from the model's are warned about, since the model takes frames of one size.
    """
    path = next((folder / name for name in PROCESSORS if (folder / name).exists()), None)
    options: Mapping[str, Any] = {} if path is None else read_json(path)
    owner = str(path or folder)
    if path is not None and path.name == PROCESSORS[1]:
        options = check_type(options.get("image_processor", {}), dict[str, Any], f"{owner}: image_processor")
    for name in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
        if options.get(name, True) is not True:
            raise InputError(f"{owner}: {name}={options[name]!r} is not supported; expected true")
    factor = check_type(options.get("rescale_factor", 1 / 255), float, f"{owner}: rescale_factor")
    if not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        raise InputError(f"{owner}: rescale_factor={factor} is not supported; expected 1/255")
    resample = options.get("resample", 2)
    if resample not in _RESIZE:
        raise InputError(f"{owner}: resample={resample!r} is not supported; expected 2 (bilinear) or 3 (bicubic)")
    for name in ("size", "crop_size"):
        sides = options.get(name, image_size)
        if any(side != image_size for side in (sides.values() if isinstance(sides, dict) else [sides])):
            warnings.warn(
                f"{owner}: {name}={sides!r} is not followed: the shorter side is resized to the {image_size} pixels of "
                "the model, and the center is taken",
                stacklevel=3,
            )
    statistics = dict(IMAGENET_PIXELS)
    for field, name in (("pixel_mean", "image_mean"), ("pixel_std", "image_std")):
        if options.get(name) is not None:
            statistics[field] = check_type(options[name], tuple[float, float, float], f"{owner}: {name}")
    return statistics, Preprocessing(resize=_RESIZE[resample])
