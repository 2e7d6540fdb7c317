"""Clips in which the place of the object is known: those of the synthetic world, and videos of a fixed camera.

Shapes: T frames, H x W patches, S image side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clipvid import InputError
from clipvid.data.config import DataConfig
from clipvid.data.manifest import Manifest
from clipvid.data.splits import load_split
from clipvid.data.synthetic.world import WorldConfig, object_track, render_clip, world_classes
from clipvid.inference.clips import ClipReader
from clipvid.inference.videos import FramesInMemory, open_source
from clipvid.model.video_clip import VideoCLIP

# A moving pixel differs this much from the median of its video, of 255. A patch on the object has this share of them.
MOVED, FILLED = 40, 0.15


@dataclass(frozen=True)
class KnownClip:
    """Clip as a model sees it, with the place of the object.

    Attributes:
        frames: uint8 [T, 3, S, S].
        track: (x, y, radius) of the object in each frame, in shares of the picture, [T, 3].
        moving: True for pixels of the object, [T, S, S], or None for all of the track's circle.
    """

    frames: Tensor
    track: Tensor
    moving: Tensor | None = None

    def on_object(self, grid: tuple[int, int]) -> Tensor:
        """Return True for the patches of the object, [T, H, W].

        With `moving`, these are patches with at least 15% moving pixels, and the one with the most of a frame.
        Otherwise, the center of the patch is on the object's circle, or the patch has the circle's center.
        """
        if self.moving is not None:
            share = F.adaptive_avg_pool2d(self.moving.float(), grid)
            return (share >= FILLED) | (share == share.amax(dim=(1, 2), keepdim=True)) & (share > 0)
        rows, columns = ((torch.arange(length) + 0.5) / length for length in grid)
        x, y, radius = (value[:, None, None] for value in self.track.unbind(dim=1))
        near = torch.hypot(columns - x, rows[:, None] - y) <= radius
        inside = ((columns - x).abs() <= 0.5 / grid[1]) & ((rows[:, None] - y).abs() <= 0.5 / grid[0])
        return near | inside


class WorldClips:
    """Test clips of the synthetic world, as a model's evaluation samples them."""

    def __init__(self, world: WorldConfig):
        self.world = world
        self.names = [label.name for label in world_classes(world)]

    def read(self, model: VideoCLIP, class_id: int, index: int) -> KnownClip:
        """Return a test clip of a class."""
        video = FramesInMemory(render_clip(self.world, class_id, "test", index))
        reader = ClipReader.create(model.num_frames, model.image_size, model.preprocessing)
        indices = reader.indices(video)
        track = torch.from_numpy(object_track(self.world, class_id, "test", index))[indices[0]]
        return KnownClip(reader.read_at(video, indices)[0], track)


class FilmedClips:
    """Videos of a fixed camera. Pixels that differ from the median of their video belong to the object."""

    def __init__(self, data: DataConfig):
        self.manifest: Manifest = load_split(data, "val")
        self.names = self.manifest.class_names

    def read(self, model: VideoCLIP, class_id: int, index: int) -> KnownClip:
        """Return the clip of a video of a class.

        Raises:
            InputError: The class has fewer videos, or nothing moves in the video.
        """
        own = [place for place, sample in enumerate(self.manifest.samples) if sample.label == class_id]
        if index >= len(own):
            raise InputError(
                f"{self.names[class_id]!r} has {len(own)} videos in data.val; choose clips_per_class up to that"
            )
        path = self.manifest.file(self.manifest.samples[own[index]])
        reader = ClipReader.create(model.num_frames, model.image_size, model.preprocessing)
        with open_source(path) as video:
            shown = reader.indices(video)[0].tolist()
            resized = {number: reader.resize(frame) for number, frame in video.frames(list(range(len(video))))}
        median = torch.stack(list(resized.values())).median(dim=0).values
        frames = torch.stack([resized[number] for number in shown])
        moving = (frames.int() - median.int()).abs().amax(dim=1) > MOVED
        if not moving.flatten(1).any(dim=1).any():
            raise InputError(f"{path}: nothing moves in the clip, so the place of an object is not known")
        return KnownClip(frames, torch.stack(list(_circles(moving))), moving)


def _circles(moving: Tensor) -> Iterator[Tensor]:
    """Yield center and radius of the moving pixels of each frame [T, S, S], the center of the picture without any."""
    side = moving.shape[-1]
    for frame in moving:
        rows, columns = frame.nonzero(as_tuple=True)
        if not len(rows):
            yield torch.tensor([0.5, 0.5, 0.0])
            continue
        center = torch.stack([columns.float().mean(), rows.float().mean()]) + 0.5
        yield torch.cat([center, (frame.sum() / torch.pi).sqrt()[None]]) / side
