"""Reading of clips: frames for the tower, a signature and facts, in one pass over each video.

Shapes: T frames for the tower, S = 3 T frames of the signature, S' pixels of a side, P pixels of a signature, E
embedding.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from clipvid.data.feature_store import FeatureStore, StoredFeatures
from clipvid.data.lists.samples import Stored
from clipvid.data.reader import open_video
from clipvid.data.sampling import uniform_indices
from clipvid.data.transforms import Transform
from clipvid.decoding.errors import VideoError
from clipvid.inspection.clips import ClipList
from clipvid.inspection.signatures import REDUCED, ClipFacts, find_bars, gray, motion_of, signature_of

DENSITY = 3  # frames of the signature for each frame of the tower, which is the middle one


@dataclass(frozen=True)
class ClipReading:
    """Result of a pass over one video.

    Attributes:
        index: Number of the clip.
        key: Key under which the rest is stored, or None.
        signature: uint8 [S, P, P]; None for an unreadable video.
        facts: Facts of the clip; None for an unreadable video.
        frames: uint8 [T, 3, S', S'], or None for stored features.
        features: Stored features [T, E], or None.
        failure: Reason why the video cannot be read; empty if it can.
    """

    index: int
    key: str | None = None
    signature: Tensor | None = None
    facts: ClipFacts | None = None
    frames: Tensor | None = None
    features: Tensor | None = None
    failure: str = ""


class ClipReader(Dataset[ClipReading]):
    """Readings of the clips of a list, by number.

    Args:
        clips: The clips.
        num_frames: T.
        transform: uint8 [1, 3, H, W] -> uint8 [1, 3, S', S'].
        stored: Readings of earlier passes.
    """

    def __init__(self, clips: ClipList, num_frames: int, transform: Transform, stored: StoredFeatures) -> None:
        self.clips, self.num_frames, self.transform, self.stored = clips, num_frames, transform, stored

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> ClipReading:
        _, manifest, place = self.clips.place(index)
        sample = manifest.samples[place]
        try:
            source = manifest.video(place)
        except VideoError as error:
            return ClipReading(index, failure=error.reason or str(error))
        except (OSError, ValueError, RuntimeError) as error:
            return ClipReading(index, failure=f"it cannot be fetched ({error})")
        media = sample.media if isinstance(sample.media, Stored) else source
        key = self.stored.key(media, sample.start, sample.end)
        earlier = None if key is None else read_stored(self.stored.store, key)
        if earlier is not None:
            features, signature, facts = earlier
            return ClipReading(index, key, signature, facts, features=features)
        try:
            frames, signature, facts = read_clip(source, sample.start, sample.end, self.num_frames, self.transform)
        except VideoError as error:
            return ClipReading(index, failure=error.reason or str(error))
        return ClipReading(index, key, signature, facts, frames)


class ResizedFrames:
    """Frames as a tower sees them. Full frames are resized together while they are small, which is faster.

    Args:
        transform: uint8 [n, 3, H, W] -> uint8 [n, 3, S', S'].
        held_bytes: Bytes of full frames that may wait to be resized.
    """

    def __init__(self, transform: Transform, held_bytes: int = 4 << 20) -> None:
        self.transform, self.held_bytes = transform, held_bytes
        self._waiting: list[tuple[int, np.ndarray]] = []
        self._frames: dict[int, Tensor] = {}

    def add(self, number: int, picture: np.ndarray) -> None:
        """Add a full frame uint8 [H, W, 3]."""
        self._waiting.append((number, picture))
        if sum(waiting.nbytes for _, waiting in self._waiting) > self.held_bytes:
            self._resize()

    def stacked(self, numbers: Sequence[int]) -> Tensor:
        """Return the frames of these numbers, uint8 [T, 3, S', S']."""
        self._resize()
        return torch.stack([self._frames[number] for number in numbers])

    def _resize(self) -> None:
        if self._waiting:
            numbers, pictures = zip(*self._waiting, strict=True)
            frames = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
            self._frames |= dict(zip(numbers, self.transform(frames), strict=True))
            self._waiting = []


def read_clip(
    source: Any, start: float | None, end: float | None, num_frames: int, transform: Transform
) -> tuple[Tensor, Tensor, ClipFacts]:
    """Return frames uint8 [T, 3, S', S'], signature uint8 [S, P, P] and facts of a part of a video.

    Few full frames are in memory at a time, see `ResizedFrames`. Frames that the tower does not see are
    decoded, but never converted in full.

    Raises:
        VideoError: The video cannot be read.
    """
    with open_video(source) as video:
        part = video.frames_between(start, end)
        chosen = part.start + uniform_indices(len(part), DENSITY * num_frames)
        needed, row = chosen.unique(return_inverse=True)
        seen = chosen[DENSITY // 2 :: DENSITY].tolist()
        resized = ResizedFrames(transform)
        small: list[np.ndarray] = []
        size = (0, 0)
        for number, picture, full in video.reduced_pictures(needed.tolist(), REDUCED, set(seen)):
            small.append(picture)
            if full is not None:
                size = (full.shape[1], full.shape[0])
                resized.add(number, full)
        times = video.frame_times(part)
        fps, varying = video.fps, video.has_varying_rate
    reduced = gray(torch.from_numpy(np.stack(small)))
    bars = find_bars(reduced)
    height, width = reduced.shape[1:]
    facts = ClipFacts(
        frames=len(part),
        fps=fps,
        seconds=None if times is None else times[-1] - times[0],
        varying_rate=varying,
        width=size[0],
        height=size[1],
        bars=(bars[0] / height, bars[1] / height, bars[2] / width, bars[3] / width),
        motion=motion_of(reduced),
        brightness=float(reduced.mean()),
    )
    return resized.stacked(seen), signature_of(reduced, bars)[row], facts


def read_stored(store: FeatureStore, key: str) -> tuple[Tensor, Tensor, ClipFacts] | None:
    """Return features, signature and facts of a clip; None if they are absent or damaged."""
    stored = store.read(key)
    if stored is None:
        return None
    content, notes = stored
    try:
        shapes, record = json.loads(notes["shapes"]), json.loads(notes["facts"])
        facts = ClipFacts(**record | {"bars": tuple(record["bars"])})
        features, signature = content.split([2 * math.prod(shapes[0]), math.prod(shapes[1])])
        # A copy, since the content may be a view of the file.
        return features.clone().view(torch.float16).view(shapes[0]), signature.clone().view(shapes[1]), facts
    except (ValueError, KeyError, TypeError, IndexError, RuntimeError):
        return None


def write_stored(store: FeatureStore, key: str, features: Tensor, signature: Tensor, facts: ClipFacts) -> None:
    """Store features float16 [T, E], signature and facts of a clip in one file."""
    content = torch.cat([features.contiguous().view(torch.uint8).flatten(), signature.flatten()])
    shapes = json.dumps([list(features.shape), list(signature.shape)])
    store.write(key, content, {"shapes": shapes, "facts": json.dumps(facts.record())})
