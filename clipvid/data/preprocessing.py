"""Sampling and resizing of evaluation clips, as recorded in a model folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from clipvid import InputError
from clipvid.data.sampling import FrameSampling
from clipvid.registry import build_config, check_option

if TYPE_CHECKING:
    from clipvid.data.transforms import Transform


@dataclass(frozen=True)
class Preprocessing:
    """Sampling and resizing of clips for evaluation.

    Attributes:
        sampling: `uniform` segments over the video, or a `dense` window.
        stride: Distance between frames of a `dense` window.
        resize: `shortest_center` or `squash`, see `eval_transform`.
    """

    sampling: Literal["uniform", "dense"] = "uniform"
    stride: int = 1
    resize: Literal["shortest_center", "squash"] = "shortest_center"

    def __post_init__(self) -> None:
        self.frame_sampling(1)
        check_option("preprocessing", "resize", self.resize, ("shortest_center", "squash"))

    def frame_sampling(self, num_frames: int) -> FrameSampling:
        """Return the sampling of clips of `num_frames` frames."""
        return FrameSampling(self.sampling, num_frames, self.stride)

    def transform(self, image_size: int) -> Transform:
        """Return the transform that resizes to `image_size` pixels."""
        from clipvid.data.transforms import eval_transform

        return eval_transform(image_size, self.resize)

    def record(self) -> dict[str, Any]:
        """Return the form in `video_preprocessor_config.json`."""
        return {"sampling": {"name": self.sampling, "stride": self.stride}, "resize": self.resize}

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
            if not isinstance(sampling, Mapping) or not sampling.keys() <= {"name", "stride"}:
                raise InputError(f"{owner}: sampling={sampling!r}: expected a mapping with `name` and `stride`")
            options |= {"sampling" if key == "name" else key: value for key, value in sampling.items()}
        config: Preprocessing = build_config(cls, options, owner)
        return config
