"""Interface between a model and the training loop."""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol

from torch import Tensor, nn

from clipvid.model.encoder import VideoEncoder


class FrameModel(Protocol):
    """Members of `VideoCLIP` that training uses, besides those of `nn.Module`."""

    @property
    def num_frames(self) -> int:
        """Number of frames T per clip."""

    @property
    def image_size(self) -> int:
        """Side S of the square frames, in pixels."""

    @property
    def encoder(self) -> VideoEncoder:
        """Image tower with its adapters."""

    def normalize(self, frames: Tensor) -> Tensor:
        """Return uint8 pixels [B, T, 3, S, S] as normalized floats."""


class TrainableModel(nn.Module):
    """Module that the training loop trains: a `VideoCLIP`, or a module around one."""

    @property
    @abstractmethod
    def video_model(self) -> FrameModel:
        """Inner `VideoCLIP`, which normalizes frames and has the adapters. A `VideoCLIP` returns itself."""

    @abstractmethod
    def trained_state(self) -> dict[str, Tensor]:
        """Return trained parameters and their buffers by name in `state_dict`."""
