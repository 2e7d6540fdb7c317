"""Video processor of transformers for clipvid's models."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.feature_extraction_utils import BatchFeature
from transformers.utils.hub import cached_file
from transformers.video_processing_utils import BaseVideoProcessor

from clipvid import InputError
from clipvid.data.preprocessing import Preprocessing
from clipvid.files import one_line
from clipvid.registry import suggest

_RECORD = "video_preprocessor_config.json"
_PASSED = ("proxies", "_from_auto", "_from_pipeline", "trust_remote_code")  # by transformers itself
# Options of transformers' video processors with the only supported value, and the reason.
_REFUSED = {
    "do_resize": (True, "frames are always resized to the size of the model"),
    "do_normalize": (False, "the model normalizes uint8 frames itself"),
    "do_rescale": (False, "the model scales uint8 frames itself"),
    "do_sample_frames": (True, "the model takes num_frames frames of a video"),
    "do_convert_rgb": (True, "frames are always RGB"),
    "do_pad": (False, "frames are resized, never padded"),
    "return_metadata": (False, "no metadata is kept"),
}


class ClipVidVideoProcessor(BaseVideoProcessor):
    """Reader of clips as in a model's evaluation.

    `video_preprocessor_config.json` contains its arguments. Pixels stay uint8, since the model normalizes them.
    """

    def __init__(
        self,
        num_frames: int = 8,
        image_size: int = 224,
        sampling: dict[str, Any] | None = None,
        resize: str = "shortest_center",
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        for name, value, limit in (("num_frames", num_frames, 4096), ("image_size", image_size, 2048)):
            if type(value) is not int or not 1 <= value <= limit:
                raise InputError(
                    f"{_RECORD}: {name}={one_line(repr(value), 80)}: expected an integer from 1 to {limit}"
                )
        self.image_mean, self.image_std = image_mean, image_std
        self.num_frames, self.image_size = num_frames, image_size
        self.sampling, self.resizing = sampling, resize
        record = {"sampling": sampling, "resize": resize}
        self._preprocessing = Preprocessing.from_record(record, _RECORD) or Preprocessing()

    @classmethod
    def get_video_processor_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the content of `video_preprocessor_config.json`, read strictly, and the options that are left.

        transformers calls this method.

        Raises:
            InputError: JSON that `clipvid.from_pretrained` refuses, too.
        """
        from clipvid.hub.strict import read_json

        names = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
        location = {name: kwargs.pop(name) for name in names if kwargs.get(name) is not None}
        others = {name: value for name, value in kwargs.items() if name not in (*names, *_PASSED)}
        path = cached_file(os.fspath(pretrained_model_name_or_path), _RECORD, **location)
        return read_json(Path(str(path))), others

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `video_preprocessor_config.json`."""
        own = {"num_frames": self.num_frames, "image_size": self.image_size}
        pixels = {"image_mean": self.image_mean, "image_std": self.image_std, "resize": self.resizing}
        return own | pixels | ({"sampling": self.sampling} if self.sampling else {})

    def preprocess(
        self,
        videos: Any,
        num_frames: int | None = None,
        frame_sampling_rate: int | None = None,
        fps: float | None = None,
        return_tensors: str | None = None,
        device: torch.device | str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Return `pixel_values_videos` uint8 [B, T, 3, S, S] of a video or a list of videos.

        Args:
            videos: See `clipvid.Predictor`.
            num_frames: Number of frames T. By default that of the model.
            frame_sampling_rate: Distance between sampled frames, in a window in the middle of the video.
            fps: Sampled frames per second, instead of `frame_sampling_rate`.
            return_tensors: `pt` (default) or `np`.
            device: Device of the tensors.
            kwargs: Other options of transformers' video processors, refused unless they have no effect.

        Raises:
            InputError: An option is not supported, or an object is not a video.
            VideoError: A video cannot be read.
        """
        from clipvid.inference.videos import split_videos

        self._check_options(kwargs)
        if return_tensors not in (None, "pt", "np"):
            raise InputError(f"return_tensors={return_tensors!r}: expected 'pt' or 'np'")
        for name, value in (("num_frames", num_frames), ("frame_sampling_rate", frame_sampling_rate), ("fps", fps)):
            if value is not None and not value > 0:
                raise InputError(f"{name}={value!r}: expected a number above 0")
        if fps is not None and frame_sampling_rate is not None:
            raise InputError(f"fps={fps} and frame_sampling_rate={frame_sampling_rate} exclude each other; pass one")
        sources, _ = split_videos(videos)
        if not sources:
            raise InputError("no video was given: the list is empty")
        clips = torch.cat([self._read(one, num_frames, frame_sampling_rate, fps) for one in sources])
        return BatchFeature({"pixel_values_videos": clips.numpy() if return_tensors == "np" else clips.to(device)})

    def fetch_videos(self, video_url_or_urls: Any, sample_indices_fn: Any = None) -> Any:
        """Read videos with clipvid's reader instead of torchcodec, see `preprocess`."""
        return self.preprocess(video_url_or_urls)["pixel_values_videos"]

    def _check_options(self, options: dict[str, Any]) -> None:
        side = self.image_size
        same = (side, (side, side), [side, side], {"height": side, "width": side})
        allowed: dict[str, tuple[tuple[Any, ...], str]] = {
            name: ((value,), reason) for name, (value, reason) in _REFUSED.items()
        }
        allowed["size"] = allowed["crop_size"] = same, f"the model takes frames of {side}x{side} pixels"
        allowed["do_center_crop"] = (self.resizing != "squash",), f"resize is {self.resizing}"
        for name, own in (("image_mean", self.image_mean), ("image_std", self.image_std)):
            allowed[name] = (own, tuple(own or ())), "the model normalizes with its own constants"
        for name, value in options.items():
            if value is None:
                continue
            if name not in allowed:
                near = suggest(name, {*allowed, "num_frames", "frame_sampling_rate", "fps"})
                raise InputError(f"{name}={value!r}: clipvid's video processor has no such option{near}")
            values, reason = allowed[name]
            if value not in values:
                raise InputError(f"{name}={value!r} is not supported: {reason}; remove it")

    def _read(self, source: Any, num_frames: int | None, stride: int | None, fps: float | None) -> Tensor:
        from clipvid.inference.clips import ClipReader
        from clipvid.inference.videos import open_source

        preprocessing = self._preprocessing
        with open_source(source) as video:
            if fps is not None:
                if video.fps is None:
                    raise InputError(f"fps={fps}: the frame rate of {video.name} is unknown; use frame_sampling_rate")
                stride = max(round(video.fps / fps), 1)
            if stride is not None:
                preprocessing = replace(preprocessing, sampling="dense", stride=stride, by="frame")
            return ClipReader.create(num_frames or self.num_frames, self.image_size, preprocessing).read(video)
