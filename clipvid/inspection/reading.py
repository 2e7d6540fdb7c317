"""Reading of clips: frames for the tower, a signature and facts, in one pass over each video.

Shapes: T frames for the tower, S = 3 T frames of the signature, S' pixels of a side, P pixels of a signature, E
embedding.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from clipvid.data.feature_store import FeatureStore, StoredFeatures
from clipvid.data.lists.samples import Stored
from clipvid.data.reader import open_video
from clipvid.data.sampling import uniform_indices
from clipvid.data.transforms import Transform
from clipvid.decoding.errors import VideoError
from clipvid.files import hash_key
from clipvid.inspection.clips import ClipList
from clipvid.inspection.signatures import ClipFacts, find_bars, motion_of, reduce_frame, signature_of

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


def read_clip(
    source: Any, start: float | None, end: float | None, num_frames: int, transform: Transform
) -> tuple[Tensor, Tensor, ClipFacts]:
    """Return frames uint8 [T, 3, S', S'], signature uint8 [S, P, P] and facts of a part of a video.

    One full frame is in memory at a time.

    Raises:
        VideoError: The video cannot be read.
    """
    with open_video(source) as video:
        part = video.frames_between(start, end)
        chosen = part.start + uniform_indices(len(part), DENSITY * num_frames)
        needed, row = chosen.unique(return_inverse=True)
        seen = set(chosen[DENSITY // 2 :: DENSITY].tolist())
        pictures: dict[int, Tensor] = {}
        reduced: list[Tensor] = []
        size = (0, 0)
        for number, frame in video.frames(needed.tolist()):
            reduced.append(reduce_frame(frame))
            size = (frame.shape[1], frame.shape[0])
            if number in seen:
                pictures[number] = transform(frame.permute(2, 0, 1)[None])[0]
        times = video.frame_times(part)
        fps, varying = video.fps, video.has_varying_rate
    small = torch.stack(reduced)
    bars = find_bars(small)
    height, width = small.shape[1:]
    facts = ClipFacts(
        frames=len(part),
        fps=fps,
        seconds=None if times is None else times[-1] - times[0],
        varying_rate=varying,
        width=size[0],
        height=size[1],
        bars=(bars[0] / height, bars[1] / height, bars[2] / width, bars[3] / width),
        motion=motion_of(small),
        brightness=float(small.mean()),
    )
    frames = torch.stack([pictures[number] for number in chosen[DENSITY // 2 :: DENSITY].tolist()])
    return frames, signature_of(small, bars)[row], facts


def read_stored(store: FeatureStore, key: str) -> tuple[Tensor, Tensor, ClipFacts] | None:
    """Return features, signature and facts of a clip; None if one of them is absent or damaged."""
    features, signature = store.read(key), store.read(_signature_key(key))
    if features is None or signature is None:
        return None
    try:
        record = json.loads(signature[1]["facts"])
        facts = ClipFacts(**record | {"bars": tuple(record["bars"])})
    except (ValueError, KeyError, TypeError):
        return None
    return features[0], signature[0], facts


def write_stored(store: FeatureStore, key: str, features: Tensor, signature: Tensor, facts: ClipFacts) -> None:
    """Store features, signature and facts of a clip."""
    store.write(key, features)
    store.write(_signature_key(key), signature, {"facts": json.dumps(facts.record())})


def _signature_key(key: str) -> str:
    return hash_key(key, "signature")
