"""Model class of transformers for clipvid's model folders.

Importing this module registers it, the config, the video processor and the pipeline with transformers.
`clipvid.inference.registration` imports it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.nn.modules.module import _IncompatibleKeys
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForVideoClassification, AutoVideoProcessor
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.hub import convert_file_size_to_int

from clipvid import InputError
from clipvid.inference import pipeline
from clipvid.inference.auto_config import ClipVidConfig
from clipvid.inference.processor import ClipVidVideoProcessor

if TYPE_CHECKING:  # transformers may import this module before clipvid's modules that import transformers
    from clipvid.model.video_clip import VideoCLIP

_PASSED_BY_TRANSFORMERS = ("_from_auto", "_from_pipeline", "adapter_kwargs", "trust_remote_code", "use_safetensors")
_FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_PUSHING = {"private", "revision", "max_shard_size"}
# Options of transformers' save_pretrained with values that have no effect here.
_SAVING = {"save_peft_format": True, "save_original_format": True, "token": None}


class ClipVidForVideoClassification(PreTrainedModel):
    """`VideoCLIP` with the interface of transformers' models, for `Trainer` and `pipeline`."""

    config_class = ClipVidConfig
    main_input_name = "pixel_values_videos"
    input_modalities = "video"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: ClipVidConfig, clip: VideoCLIP | None = None):
        super().__init__(config)
        if clip is None:
            raise InputError("use from_pretrained(folder or repository); for a new model, use clipvid.create_model")
        self.clip = clip

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        config: ClipVidConfig | None = None,
        revision: str | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device_map: Any = None,
        attn_implementation: str | None = None,
        **others: Any,
    ) -> ClipVidForVideoClassification:
        """Load a model with `clipvid.from_pretrained`.

        Args:
            pretrained_model_name_or_path: A folder, or a repository on the Hub.
            config: Config of the model, if it is already loaded.
            revision: Branch, tag or commit on the Hub.
            dtype: Floating type of the weights. By default, and with `auto`, float32.
            torch_dtype: Former name of `dtype`.
            device_map: One device for the whole model, or `auto` for the GPU if there is one.
            attn_implementation: Only `sdpa`.
            others: Refused, except options that transformers itself passes.

        Raises:
            InputError: An option is not supported; see also `clipvid.from_pretrained`.
        """
        from clipvid.hub.loading import from_pretrained

        unknown = {key for key, value in others.items() if value and key not in _PASSED_BY_TRANSFORMERS}
        if unknown:
            raise InputError(
                f"{', '.join(sorted(unknown))}: not an option of clipvid's models (the token is HF_TOKEN's, the cache "
                "HF_HOME's; move the model with .to(device))"
            )
        attention = attn_implementation or getattr(config, "_attn_implementation", None)  # set by AutoModel
        if attention not in (None, "sdpa"):
            raise InputError(f"attn_implementation={attention!r}: clipvid's blocks have only 'sdpa'")
        chosen_dtype, device = _floating_type(torch_dtype if dtype is None else dtype), _single_device(device_map)
        source, folder = pretrained_model_name_or_path, Path(pretrained_model_name_or_path).is_dir()
        clip = from_pretrained(source, None if folder else revision).to(device, chosen_dtype)
        return cls(config or ClipVidConfig.from_pretrained(source, revision=revision or "main"), clip).eval()

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str | None = None,
        **options: Any,
    ) -> None:
        """Write a model folder, and optionally push it to the Hub.

        `model.safetensors` contains all trained weights, so that `Trainer` can load it.

        Args:
            save_directory: The folder, see `clipvid.model.saving.save_model`.
            is_main_process: False for a process that writes nothing.
            state_dict: Weights to save instead of the model's, with all names of `self.state_dict()`.
            push_to_hub: Upload the folder, see `clipvid.push_to_hub`.
            max_shard_size: Size from which the weights are split into several files, such as `1GB`.
            options: `repo_id` (by default the name of the folder in your namespace), `private` and `revision` of the
                push. Others are refused unless they have transformers' defaults.

        Raises:
            InputError: An option is not supported, or the weights do not fit.
        """
        hub = {name: options.pop(name) for name in ("repo_id", "private", "revision") if options.get(name) is not None}
        unknown = {name for name, value in options.items() if value is not None and value != _SAVING.get(name)}
        if unknown or (hub and not push_to_hub):
            raise InputError(
                f"{', '.join(sorted(unknown or hub))}: not an option of saving clipvid's models; it takes "
                "max_shard_size, and with push_to_hub=True repo_id, private and revision (the token is HF_TOKEN's)"
            )
        if not is_main_process:
            return
        from clipvid.model.saving import save_model

        clip = self.clip
        if state_dict is not None and not self._holds(state_dict):
            other = copy.deepcopy(self)
            other.load_state_dict(state_dict)
            clip = other.clip
        size = None if max_shard_size is None else convert_file_size_to_int(max_shard_size)
        save_model(clip, Path(save_directory), self_contained=True, max_shard_size=size)
        if push_to_hub:
            self._push(Path(save_directory), **hub)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:  # type: ignore[override]
        """Save and upload the model; return the URL of the commit. See `save_pretrained` for the options."""
        unknown = {name for name, value in options.items() if value is not None} - _PUSHING
        if unknown:
            raise InputError(
                f"{', '.join(sorted(unknown))}: not an option of push_to_hub; it takes {', '.join(sorted(_PUSHING))}"
            )
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, max_shard_size=options.get("max_shard_size"))
            return self._push(Path(folder), repo_id, options.get("private"), options.get("revision"))

    def _push(
        self, folder: Path, repo_id: str | None = None, private: bool | None = None, revision: str | None = None
    ) -> str:
        from huggingface_hub import HfApi

        from clipvid.hub.push import check_login, push_to_hub

        name = repo_id or folder.resolve().name
        if "/" not in name:
            check_login()
            name = f"{HfApi().whoami()['name']}/{name}"
        return push_to_hub(folder, name, bool(private), revision).url

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load the whole state, or the content of `model.safetensors` as written by `save_pretrained`.

        Args:
            state_dict: All weights under the names of `self.state_dict()`, or the trained ones under those of
                `VideoCLIP.trained_state()`.
            strict: Ignored: `Trainer` passes False and would continue with missing weights.
            assign: Replace the model's tensors instead of copying. Only for the whole state.

        Raises:
            InputError: Names are missing or unexpected, or shapes differ. The message lists them.
        """
        from clipvid.backbone.state_dicts import load_strictly, mismatches, shortened

        if any(name.startswith("clip.") for name in state_dict):
            problems = mismatches(self.state_dict(), state_dict)
            if problems:
                raise InputError(f"the weights do not fit the model: {shortened(problems)}")
            keys = super().load_state_dict(state_dict, True, assign)
        else:
            load_strictly(self.clip.trained_state(), state_dict)
            keys = _IncompatibleKeys([], [])
        self.clip.refresh_labels()
        return keys

    def forward(self, pixel_values_videos: Tensor, labels: Tensor | None = None) -> ImageClassifierOutput:
        """Compute logits [B, K] of frames [B, T, 3, S, S], uint8 or normalized, and the loss for labels.

        Labels are [B], or [B, K] with ones and zeros for a model with several labels per video.
        """
        output = self.clip(pixel_values_videos, patches=not self.training)  # as in clipvid's own training
        loss = None
        if labels is not None:
            if self.clip.config.multi_label:
                error = binary_cross_entropy_with_logits(output.logits, labels.to(output.logits.dtype))
            else:
                error = cross_entropy(output.logits, labels)
            loss = error + sum(output.losses.values())
        return ImageClassifierOutput(loss=loss, logits=output.logits)

    def _holds(self, state_dict: Mapping[str, Tensor]) -> bool:
        """Return True if `state_dict` consists of the model's tensors."""
        own = self.state_dict()
        return own.keys() == state_dict.keys() and all(
            own[name].data_ptr() == value.data_ptr() and own[name].dtype == value.dtype
            for name, value in state_dict.items()
        )

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Any = checkpoint, every_n_layers: int = 1
    ) -> None:
        """Enable or disable the encoder's checkpointing.

        Raises:
            InputError: The checkpointing is not that of every block without reentrance.
        """
        options = getattr(gradient_checkpointing_func, "keywords", {})
        other = {name: value for name, value in options.items() if (name, value) != ("use_reentrant", False)}
        if enable and (other or every_n_layers != 1):
            raise InputError(
                f"gradient checkpointing with {other or {'every_n_layers': every_n_layers}}: clipvid's encoder "
                "checkpoints every block with use_reentrant=False and takes no other option"
            )
        if enable and getattr(gradient_checkpointing_func, "func", checkpoint) is not checkpoint:
            raise InputError("gradient checkpointing with offload: clipvid's encoder keeps activations on the device")
        self.clip.encoder.gradient_checkpointing = enable


def _floating_type(dtype: torch.dtype | str | None) -> torch.dtype:
    """Return the type of `dtype`.

    Raises:
        InputError: The value is not a supported floating type.
    """
    if dtype is None or dtype == "auto":
        return torch.float32
    floating = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if floating not in _FLOATING:
        names = ", ".join(str(one).removeprefix("torch.") for one in _FLOATING)
        raise InputError(f"dtype={dtype!r}: expected one of auto, {names}")
    assert isinstance(floating, torch.dtype)
    return floating


def _single_device(device_map: Any) -> torch.device:
    """Return the device of `device_map`.

    Raises:
        InputError: The value is a map of several devices, or an unknown device.
    """
    if isinstance(device_map, dict) and set(device_map) == {""}:
        device_map = device_map[""]
    if device_map is None:
        return torch.device("cpu")
    if device_map == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device_map)
    except (RuntimeError, TypeError):
        raise InputError(
            f"device_map={device_map!r}: clipvid's models use one device; pass 'auto' or a device such as 'cuda:0'"
        ) from None


AutoConfig.register("clipvid", ClipVidConfig)
AutoModelForVideoClassification.register(ClipVidConfig, ClipVidForVideoClassification)
AutoVideoProcessor.register(ClipVidConfig, ClipVidVideoProcessor)
pipeline.register()
