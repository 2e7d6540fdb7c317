"""The interface between a model and the training loop."""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol

from torch import Tensor, nn

from clipvid.model.encoder import VideoEncoder


class FrameModel(Protocol):
    """The parts of a `VideoCLIP` that training uses, beside those of a module."""

    @property
    def num_frames(self) -> int:
        """Frames T per clip."""

    @property
    def image_size(self) -> int:
        """Side S of the square frames, in pixels."""

    @property
    def encoder(self) -> VideoEncoder:
        """The image tower with its adapters."""

    def normalize(self, frames: Tensor) -> Tensor:
        """Return uint8 pixels [B, T, 3, S, S] as normalized floats."""


class TrainableModel(nn.Module):
    """A module that the training loop trains: a `VideoCLIP`, or a module around one."""

    @property
    @abstractmethod
    def video_model(self) -> FrameModel:
        """The `VideoCLIP` inside, which normalizes frames and has the adapters; a `VideoCLIP` returns itself."""

    @abstractmethod
    def trained_state(self) -> dict[str, Tensor]:
        """Return what a run trains, with the buffers beside it, by name in `state_dict`."""
