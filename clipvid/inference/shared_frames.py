"""Scores and features of clips that share frames. The part of the model below the first adapter runs once per frame.

Shapes: W clips, T frames, S image side, K classes, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clipvid.inference.window_frames import WindowGroup
from clipvid.model.encoder import FrozenFeatures
from clipvid.model.video_clip import VideoCLIP

_FRAMES_AT_ONCE = 32


class SharedFrames:
    """Frames of a video by number, each encoded once up to the first adapter.

    Clips get the scores of the whole model, up to rounding.

    Args:
        model: Model in evaluation mode.
    """

    def __init__(self, model: VideoCLIP) -> None:
        self.model, self.depth = model, model.frame_depth()
        self._pixels: dict[int, Tensor] = {}
        self._features: dict[int, Tensor] = {}

    def add(self, number: int, frame: Tensor) -> None:
        """Add a frame uint8 [3, S, S]."""
        self._pixels[number] = frame

    def add_group(self, group: WindowGroup) -> None:
        """Add the frames of a group of windows."""
        for number, frame in zip(group.numbers, group.frames, strict=True):
            self.add(number, frame)

    def forget_before(self, number: int) -> None:
        """Remove frames with lower numbers."""
        for frames in (self._pixels, self._features):
            for key in [key for key in frames if key < number]:
                del frames[key]

    @torch.no_grad()
    def score(self, clips: Sequence[Tensor]) -> Tensor:
        """Return the probabilities [W, K] of clips, on the CPU. A clip is the numbers of its frames, int64 [T]."""
        logits = self.model(self._tokens(clips)).logits
        return self.model.probabilities(logits).cpu()

    @torch.no_grad()
    def features(self, clips: Sequence[Tensor]) -> Tensor:
        """Return the features [W, E] of clips as `VideoCLIP.encode_video`, in float32 on the CPU; see `score`."""
        return self.model.encode_video(self._tokens(clips)).float().cpu()

    def _tokens(self, clips: Sequence[Tensor]) -> FrozenFeatures:
        numbers = torch.stack(list(clips))
        self._encode([number for number in numbers.unique().tolist() if number not in self._features])
        tokens = torch.stack([torch.stack([self._features[number] for number in clip]) for clip in numbers.tolist()])
        return FrozenFeatures(tokens, self.depth)

    def _encode(self, numbers: list[int]) -> None:
        for first in range(0, len(numbers), _FRAMES_AT_ONCE):
            part = numbers[first : first + _FRAMES_AT_ONCE]
            frames = torch.stack([self._pixels.pop(number) for number in part]).to(self.model.pixel_mean.device)
            features = self.model.encoder.lower(self.model.normalize(frames[None]), self.depth).tokens[0]
            self._features.update(zip(part, features, strict=True))
