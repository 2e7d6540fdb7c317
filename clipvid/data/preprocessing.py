"""Sampling and resizing of evaluation clips, as recorded in a model folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from clipvid import InputError
from clipvid.data.sampling import FrameSampling
from clipvid.registry import Choice, build_config, check_option

if TYPE_CHECKING:
    from clipvid.data.transforms import Transform

Resize: TypeAlias = Literal["shortest_center", "squash", "bilinear_center"]  # transforms.py is slow to import


@dataclass(frozen=True)
class Preprocessing:
    """Sampling and resizing of clips for evaluation.

    Attributes:
        sampling: `uniform` segments over the video, or a `dense` window.
        stride: Distance between frames of a `dense` window.
        resize: `shortest_center`, `squash` or `bilinear_center`, see `eval_transform`.
        by: `frame` or `time`, see `FrameSampling`.
    """

    sampling: Literal["uniform", "dense"] = "uniform"
    stride: int = 1
    resize: Resize = "shortest_center"
    by: Literal["frame", "time"] = "frame"

    def __post_init__(self) -> None:
        self.frame_sampling(1)
        check_option("preprocessing", "resize", self.resize, get_args(Resize))

    def frame_sampling(self, num_frames: int) -> FrameSampling:
        """Return the sampling of clips of `num_frames` frames."""
        return FrameSampling(self.sampling, num_frames, self.stride, self.by)

    def transform(self, image_size: int) -> Transform:
        """Return the transform that resizes to `image_size` pixels."""
        from clipvid.data.transforms import eval_transform

        return eval_transform(image_size, self.resize)

    def record(self) -> dict[str, Any]:
        """Return the form in `video_preprocessor_config.json`."""
        by = {} if self.by == "frame" else {"by": self.by}
        return {"sampling": {"name": self.sampling, "stride": self.stride} | by, "resize": self.resize}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], owner: str) -> Preprocessing | None:
        """Return the inverse of `record`, or None if `sampling` and `resize` are both absent or null.

        Raises:
            InputError: An option or value is unknown. The message names the file, `owner`.
        """
        sampling, resize = record.get("sampling"), record.get("resize")
        if sampling is None and resize is None:
            return None
        options = {} if resize is None else {"resize": resize}
        if sampling is not None:
            options |= _sampling_options(sampling, f"{owner}: sampling")
        config: Preprocessing = build_config(cls, options, owner)
        return config

    @classmethod
    def from_options(cls, sampling: Choice, stride: int, resize: str) -> Preprocessing:
        """Return what `data.sampling`, `data.stride` and `data.resize` describe.

        Args:
            sampling: a name, or a mapping of `name` and perhaps `stride` and `by`.
            stride: of a dense window, if the mapping has none.
            resize: see the class.

        Raises:
            InputError: options or values that are unknown or do not go together.
        """
        options = _sampling_options({"name": sampling} if isinstance(sampling, str) else sampling, "data.sampling")
        if options.get("stride", stride) != stride and stride != 1:
            raise InputError(f"data.sampling has stride {options['stride']}, and data.stride={stride}; give one")
        config: Preprocessing = build_config(cls, {"stride": stride, "resize": resize} | options, "data")
        return config


def _sampling_options(sampling: Any, owner: str) -> dict[str, Any]:
    """Return the options of `Preprocessing` in a mapping of `name`, `stride` and `by`."""
    if not isinstance(sampling, Mapping) or not sampling.keys() <= {"name", "stride", "by"}:
        raise InputError(f"{owner}={sampling!r}: expected a name, or a mapping with `name`, `stride` and `by`")
    return {"sampling" if key == "name" else key: value for key, value in sampling.items()}
