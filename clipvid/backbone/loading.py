"""Loading of CLIP models by open_clip's tags, from files, folders and the Hub."""

from __future__ import annotations

import difflib
import logging
import re
import warnings
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.factory import load_state_dict
from open_clip.pretrained import get_pretrained_cfg
from safetensors.torch import load_file
from torch import Tensor

from clipvid import InputError, RunError
from clipvid.backbone.hub_retries import announce_retries_once
from clipvid.backbone.hugging_face import read_hugging_face
from clipvid.backbone.image_size import resize
from clipvid.backbone.parts import CONFIG_FILE, WEIGHTS_FILE, Backbone, split_clip
from clipvid.backbone.state_dicts import mismatches, shortened
from clipvid.backbone.towers import NO_TEXT, MissingTokenizer
from clipvid.files import one_line
from clipvid.registry import suggest

TOKENIZER_OPTIONS = {"clean", "language", "strip_sep_token"}
TINY = "tiny"
RANDOM = "random"
_TINY_FOLDER = Path(__file__).parent.parent / "weights" / TINY


def load_backbone(name: str, pretrained: str | None = None, image_size: int | None = None) -> Backbone:
    """Load a CLIP model by open_clip's name.

    Args:
        name: `tiny` (the small CLIP inside this package), a name of `open_clip.list_models()`, `hf-hub:org/repo` or
            `local-dir:/path` with open_clip's config and weights.
        pretrained: A tag of `open_clip.list_pretrained()`, a file, a folder of transformers' `CLIPModel` or
            `SiglipModel`, or `random`. None leaves a named tower random, with a warning.
        image_size: Side in pixels, if it differs from the pretrained one. Position embeddings are resampled.

    Raises:
        InputError: The name or tag is unknown, the tower is not a ViT, or the image size does not fit it.
        RunError: The weights cannot be downloaded or do not fit. The message lists the places that were tried.
    """
    source = f"local-dir:{_TINY_FOLDER}" if name == TINY else name
    config = _find_config(name, source)
    without_code = _refuse_code(name, config)
    _require_safetensors(name, source)
    options = _weight_options(name, config, pretrained)
    state = _own_weights(source, config, options)
    if pretrained is not None and _is_folder(name, pretrained):
        state, quick_gelu = read_hugging_face(Path(pretrained))
        if config.get("quick_gelu") and not quick_gelu:
            raise InputError(
                f"{pretrained} was trained with GELU, {name} has QuickGELU: choose the backbone without quickgelu"
            )
        options["force_quick_gelu"] = quick_gelu
    if not options.get("load_weights", True):
        logging.disable(logging.WARNING)  # open_clip warns about random weights
    try:
        with announce_retries_once():
            clip = open_clip.create_model(source, force_patch_dropout=0.0, **options)
        if state is not None:
            resize(clip.visual, config["vision_cfg"]["image_size"])
            clip.load_state_dict(state)
    except Exception as error:
        problems = _misfit(name, pretrained, state)
        raise RunError(_fetch_advice(name, pretrained, problems or error)) from error
    finally:
        logging.disable(logging.NOTSET)
    config |= {"quick_gelu": options["force_quick_gelu"]} if options.get("force_quick_gelu") else {}
    if image_size is not None:
        config["vision_cfg"]["image_size"] = image_size
        resize(clip.visual, image_size)
    try:
        tokenizer = _tokenizer(source, config.get("text_cfg", {}), without_code)
    except Exception as error:  # models that never read text work without a tokenizer
        tokenizer = MissingTokenizer(name, str(error).splitlines()[0] if str(error) else type(error).__name__)
    return split_clip(clip.eval(), tokenizer, name, pretrained, _is_public(name, pretrained), config)


def _refuse_code(name: str, config: dict[str, Any]) -> dict[str, bool]:
    """Return safe tokenizer options for an untrusted config.

    open_clip passes `tokenizer_kwargs`, `hf_model_name` and `timm_model_name` to transformers and timm. Some values run
    code from a folder or download another repository.

    Raises:
        InputError: The config has values that do not occur in open_clip's configs.
    """
    text, vision = config.get("text_cfg", {}), config.get("vision_cfg", {})
    unsafe = sorted((text.get("tokenizer_kwargs") or {}).keys() - TOKENIZER_OPTIONS)
    if unsafe:
        raise InputError(
            f"{name}: its config passes {unsafe} to the tokenizer, which could run code; expected none of these"
        )
    tower = text.get("hf_model_name")
    if tower is not None and (tower not in _text_towers() or Path(tower).exists()):
        raise InputError(
            f"{name}: its config names the text tower {tower!r}, whose folder could run code; expected one of "
            f"open_clip's own: {', '.join(sorted(_text_towers()))}"
        )
    trunk = vision.get("timm_model_name")
    if trunk is not None and not re.fullmatch(r"[\w.]+", str(trunk)):
        raise InputError(f"{name}: its config names the image tower {trunk!r}; expected a model name of timm")
    return {"trust_remote_code": False} if text.get("hf_tokenizer_name") else {}


@cache
def _text_towers() -> set[str]:
    """Return the text towers of transformers in open_clip's configs."""
    configs = (open_clip.get_model_config(name) or {} for name in open_clip.list_models())
    names = {config.get("text_cfg", {}).get("hf_model_name") for config in configs}
    return {name for name in names if name is not None}


def _require_safetensors(name: str, source: str) -> None:
    """Raise RunError unless a `local-dir:` contains its weights as a regular safetensors file.

    open_clip would otherwise fall back to pickled weights in the same folder.
    """
    if source.startswith("local-dir:"):
        folder = Path(source.removeprefix("local-dir:"))
        if folder.is_dir() and not (folder / WEIGHTS_FILE).is_file():
            problem = f"it has no file {WEIGHTS_FILE}, and weights in other formats are not read"
            raise RunError(_fetch_advice(name, None, problem))


def build_backbone(config: dict[str, Any], state_dict: dict[str, Tensor], name: str) -> Backbone:
    """Build a CLIP model from open_clip's `model_cfg` and a complete state dict with open_clip's names.

    If `config["text_cfg"]` is `NO_TEXT`, the weights of the image tower suffice.
    """
    clip = open_clip.CLIP(**config)
    if config["text_cfg"] == NO_TEXT:
        placeholders = {key: torch.zeros_like(value) for key, value in clip.state_dict().items()}
        state_dict = {key: value for key, value in placeholders.items() if not key.startswith("visual.")} | state_dict
    try:
        clip.load_state_dict(state_dict)
    except RuntimeError as error:
        raise InputError(f"the weights of {name} do not fit its config: {error}") from error
    return split_clip(clip.eval(), _tokenizer(name, config["text_cfg"], {}), name, None, False, config)


def _tokenizer(source: str, text_config: dict[str, Any], options: dict[str, bool]) -> Any:
    """Return the tokenizer of a text tower. All towers with CLIP's vocabulary share its tables."""
    if text_config.keys() & {"hf_tokenizer_name", "tokenizer_kwargs"}:
        return open_clip.get_tokenizer(source, **options)
    tokenizer = copy(_clip_tokenizer())
    tokenizer.context_length = text_config.get("context_length", tokenizer.context_length)
    return tokenizer


@cache
def _clip_tokenizer() -> open_clip.SimpleTokenizer:
    """Return CLIP's tokenizer, read once. Reading takes longer than loading a small model."""
    return open_clip.SimpleTokenizer()


def hub_repository(name: str, pretrained: str | None) -> str | None:
    """Return the Hub repository of a backbone's weights, or None."""
    if name.startswith("hf-hub:"):
        return name.removeprefix("hf-hub:")
    tag = get_pretrained_cfg(name, pretrained) if pretrained else None
    return "/".join(tag["hf_hub"].split("/")[:2]) if tag and tag.get("hf_hub") else None


def is_weight_tag(name: str, pretrained: str | None) -> bool:
    """Return True if `pretrained` is one of open_clip's tags for a model."""
    return pretrained is not None and bool(get_pretrained_cfg(name, pretrained))


def _own_weights(source: str, config: dict[str, Any], options: dict[str, Any]) -> dict[str, Tensor] | None:
    """Load the weights of a folder with a timm tower. open_clip cannot load them if the image size is not timm's."""
    if not source.startswith("local-dir:") or "timm_model_name" not in config["vision_cfg"]:
        return None
    options |= {"load_weights": False, "require_pretrained": False}
    return load_file(Path(source.removeprefix("local-dir:")) / WEIGHTS_FILE)


def _is_public(name: str, pretrained: str | None) -> bool:
    if pretrained is None:
        return name == TINY or name.startswith("hf-hub:")
    return pretrained != RANDOM and not Path(pretrained).is_file() and not _is_folder(name, pretrained)


def _is_folder(name: str, pretrained: str) -> bool:
    """Return True if `pretrained` is a folder of weights. A tag of the same name takes precedence."""
    return not get_pretrained_cfg(name, pretrained) and Path(pretrained).is_dir()


def _find_config(name: str, source: str) -> dict[str, Any]:
    try:
        config = open_clip.get_model_config(source)
    except Exception as error:
        raise RunError(_fetch_advice(name, None, error)) from error
    if config is None:
        raise InputError(
            f"unknown backbone {name!r}{_nearest(name)}: expected tiny, a name of open_clip.list_models() such as "
            "ViT-B-16, "
            "hf-hub:org/repo or local-dir:/path"
        )
    return config


def _nearest(name: str) -> str:
    """Return a suggestion with the nearest backbone name, ignoring case."""
    names = {TINY: TINY} | {model.lower(): model for model in open_clip.list_models()}
    close = difflib.get_close_matches(name.lower(), names, n=1)
    return f" (did you mean {names[close[0]]!r}?)" if close else ""


def _weight_options(name: str, config: dict[str, Any], pretrained: str | None) -> dict[str, Any]:
    """Return arguments that make open_clip load exactly the requested weights, with their activation."""
    own_weights = ":" in name or name == TINY
    if pretrained == RANDOM:
        return {"load_weights": False, "pretrained_text": False}
    if own_weights and pretrained:
        raise InputError(f"backbone {name!r} includes its weights; remove pretrained={pretrained!r}")
    if pretrained is not None and _is_folder(name, pretrained):
        return _weight_options(name, config, RANDOM)
    if own_weights:
        return {"require_pretrained": True}
    if pretrained is None:
        warnings.warn(
            f"{name} has RANDOM weights: no `pretrained` was given (for example pretrained='openai'). "
            f"Set pretrained='{RANDOM}' if this is intended",
            stacklevel=4,
        )
        return _weight_options(name, config, RANDOM)
    tag = get_pretrained_cfg(name, pretrained)
    if not tag and not Path(pretrained).is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        near = suggest(pretrained, open_clip.list_pretrained_tags_by_model(name))
        raise InputError(
            f"{name} has no weights {pretrained!r}{near}: neither a file, a folder nor one of its tags ({tags})"
        )
    options: dict[str, Any] = {"pretrained": pretrained, "require_pretrained": True}
    if tag and tag.get("quick_gelu") and not config.get("quick_gelu"):
        options["force_quick_gelu"] = True
    return options


def _misfit(name: str, pretrained: str | None, state: dict[str, Tensor] | None) -> str:
    """Return names and shapes in which user-provided weights differ from the model's, or an empty string."""
    try:
        if state is None and pretrained is not None and Path(pretrained).is_file():
            state = load_state_dict(pretrained)
        if state is None:
            return ""
        logging.disable(logging.WARNING)  # the caller enables it again
        own = open_clip.create_model(name, load_weights=False, pretrained_text=False).state_dict()
    except Exception:  # unreadable weights are reported by the first error
        return ""
    problems = mismatches(own, state)
    return f"they belong to another model: {shortened(problems)}" if problems else ""


def _fetch_advice(name: str, pretrained: str | None, error: Exception | str) -> str:
    title = f"{name}, pretrained={pretrained!r}" if pretrained else name
    tag = get_pretrained_cfg(name, pretrained) if pretrained and ":" not in name else None
    places = [tag[key] for key in ("hf_hub", "url") if tag and tag.get(key)] if tag else [name]
    reason = one_line(error, 1000) or type(error).__name__
    return (
        f"the weights of {title} could not be loaded from {' or '.join(places)}: {reason.rstrip('.')}. "
        "With a local copy, use pretrained=/path/to/weights (.safetensors or .pt of that model, or a folder of "
        "transformers' CLIPModel or SiglipModel), or "
        f"backbone=local-dir:/path (a folder with {CONFIG_FILE} and {WEIGHTS_FILE}), "
        "or a filled cache with HF_HUB_OFFLINE=1."
    )
