"""The faces that a model folder shows to transformers: config, model and video processor, known to its Auto classes.

Importing this module registers them; `clipvid.inference.registration` imports it. The files are read by clipvid itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForVideoClassification, AutoVideoProcessor
from transformers.configuration_utils import PreTrainedConfig
from transformers.feature_extraction_utils import BatchFeature
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.video_processing_utils import BaseVideoProcessor

from clipvid import InputError

if TYPE_CHECKING:  # transformers imports this module, perhaps before those of clipvid that import transformers
    from clipvid.model.video_clip import VideoCLIP

_PASSED_BY_TRANSFORMERS = ("_from_auto", "_from_pipeline", "adapter_kwargs", "trust_remote_code")


class ClipVidConfig(PreTrainedConfig):
    """`config.json` of a model folder; `id2label` and `num_frames` as transformers wants them are taken from it."""

    model_type = "clipvid"

    format_version: int | None = None
    backbone: dict[str, Any] | None = None
    model: dict[str, Any] | None = None
    num_classes: int | None = None
    labels: list[str] | None = None
    templates: list[str] | None = None
    files: dict[str, str] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        count = kwargs.pop("num_labels", None)  # transformers would make a name for each of them
        if count is not None and count != len(self.labels or ()):
            raise InputError(f"num_labels={count} does not fit the {len(self.labels or ())} labels of the model")
        if self.labels:
            self.id2label = dict(enumerate(self.labels))
            self.label2id = {name: index for index, name in enumerate(self.labels)}
        super().__post_init__(**kwargs)

    @property
    def num_frames(self) -> int | None:
        """Frames T per clip."""
        return self.model["num_frames"] if self.model else None


class ClipVidForVideoClassification(PreTrainedModel):
    """A `VideoCLIP` with transformers' manners."""

    config_class = ClipVidConfig
    main_input_name = "pixel_values_videos"
    input_modalities = "video"

    def __init__(self, config: ClipVidConfig, clip: VideoCLIP | None = None):
        super().__init__(config)
        if clip is None:
            raise InputError("made by from_pretrained(folder or repository) alone; a fresh model: clipvid.create_model")
        self.clip = clip

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        config: ClipVidConfig | None = None,
        revision: str | None = None,
        dtype: torch.dtype | str | None = None,
        **others: Any,
    ) -> ClipVidForVideoClassification:
        """`clipvid.from_pretrained`, with its errors; `dtype` of the weights, float32 where left out or `auto`.

        Raises:
            ValueError: an option of transformers that has no effect here, such as `device_map` or `token`.
        """
        from clipvid.hub.loading import from_pretrained

        unknown = {key for key, value in others.items() if value and key not in _PASSED_BY_TRANSFORMERS}
        if unknown:
            raise InputError(
                f"{', '.join(sorted(unknown))}: not an option of clipvid's models (the token is HF_TOKEN's, the cache "
                "HF_HOME's; move the model with .to(device))"
            )
        source, folder = pretrained_model_name_or_path, Path(pretrained_model_name_or_path).is_dir()
        clip = from_pretrained(source, None if folder else revision)
        if isinstance(dtype, torch.dtype):
            clip = clip.to(dtype)
        return cls(config or ClipVidConfig.from_pretrained(source, revision=revision or "main"), clip).eval()

    def save_pretrained(self, save_directory: str | Path, **ignored: Any) -> None:  # type: ignore[override]
        """`VideoCLIP.save_pretrained`: the folder that clipvid reads too."""
        self.clip.save_pretrained(save_directory)

    def forward(self, pixel_values_videos: Tensor, labels: Tensor | None = None) -> ImageClassifierOutput:
        """Compute logits [B, K] of frames [B, T, 3, S, S], uint8 or normalized, and the loss with labels [B]."""
        output = self.clip(pixel_values_videos)
        loss = None
        if labels is not None:
            loss = cross_entropy(output.logits, labels) + sum(output.losses.values())
        return ImageClassifierOutput(loss=loss, logits=output.logits)


class ClipVidVideoProcessor(BaseVideoProcessor):
    """From a video to the frames that the model's own evaluation takes, by clipvid's reader.

    `video_preprocessor_config.json` holds its arguments. Pixels stay uint8: the model normalizes them.
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
        self.image_mean, self.image_std = image_mean, image_std
        self.num_frames, self.image_size = num_frames, image_size
        self.sampling, self.resizing = sampling, resize

    def to_dict(self) -> dict[str, Any]:
        """What `video_preprocessor_config.json` holds."""
        own = {"num_frames": self.num_frames, "image_size": self.image_size}
        pixels = {"image_mean": self.image_mean, "image_std": self.image_std, "resize": self.resizing}
        return own | pixels | ({"sampling": self.sampling} if self.sampling else {})

    def preprocess(self, videos: Any, num_frames: int | None = None, **kwargs: Any) -> BatchFeature:
        """One video or a list of them -> `pixel_values_videos` uint8 [B, T, 3, S, S].

        A video is a path, URL, bytes, file object, or frames uint8 [N, H, W, 3] in memory.
        """
        sources = videos if isinstance(videos, list | tuple) else [videos]
        return BatchFeature({"pixel_values_videos": torch.cat([self._read(one, num_frames) for one in sources])})

    def fetch_videos(self, video_url_or_urls: Any, sample_indices_fn: Any = None) -> Any:
        """Not torchcodec, but clipvid's reader: see `preprocess`."""
        return self.preprocess(video_url_or_urls)["pixel_values_videos"]

    def _read(self, source: Any, num_frames: int | None) -> Tensor:
        from clipvid.data.preprocessing import Preprocessing
        from clipvid.data.reader import open_video
        from clipvid.inference.predictor import ClipReader

        record = {"sampling": self.sampling, "resize": self.resizing}
        preprocessing = Preprocessing.from_record(record, "video_preprocessor_config.json")
        reader = ClipReader.create(num_frames or self.num_frames, self.image_size, preprocessing)
        if isinstance(source, np.ndarray | Tensor):
            return reader.read(_Frames(source))
        if isinstance(source, str) and source.startswith(("http://", "https://")):
            with urlopen(source) as response:
                source = response.read()
        with open_video(source) as video:
            return reader.read(video)


class _Frames:
    """Frames in memory, read like a video."""

    def __init__(self, frames: np.ndarray | Tensor):
        self.frames = torch.as_tensor(frames)
        if self.frames.ndim != 4 or self.frames.shape[-1] != 3 or self.frames.dtype != torch.uint8:
            raise InputError(
                f"frames are {self.frames.dtype} {list(self.frames.shape)}; expected uint8 [N, H, W, 3] (RGB)"
            )

    def __len__(self) -> int:
        return len(self.frames)

    def read(self, indices: Tensor) -> Tensor:
        return self.frames[indices]


AutoConfig.register("clipvid", ClipVidConfig)
AutoModelForVideoClassification.register(ClipVidConfig, ClipVidForVideoClassification)
AutoVideoProcessor.register(ClipVidConfig, ClipVidVideoProcessor)
