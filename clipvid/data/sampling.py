"""Frame indices of clips, and the keyed generator behind every random draw.

Torch is imported by random draws and for tensors only: an exported model samples by `FrameSampling.fixed_indices`.

Shapes: N frames in the video, T frames in the clip. Indices count frames in presentation order from 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from clipvid import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def keyed_generator(*key: int) -> torch.Generator:
    """Return a CPU generator whose state depends only on the integers in `key`, e.g. (seed, epoch, sample index).

    The key is hashed, so adjacent keys and keys of different lengths give unrelated streams. Every random draw of the
    project uses such a generator: order, workers, processes and resumes do not change a sample. torch's CPU engine
    keeps 32 bits of a seed: about one pair of keys in four billion shares a stream.
    """
    if not key:
        raise InputError("keyed_generator got an empty key; pass at least one integer, e.g. the seed")
    import torch

    digest = hashlib.blake2b(",".join(str(int(part)) for part in key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def uniform_indices(
    total: int, num_frames: int, *, generator: torch.Generator | None = None, clip: int = 0, num_clips: int = 1
) -> Tensor:
    """Return one frame from each of T equal segments of the video (TSN, https://arxiv.org/abs/1608.00859): int64 [T].

    With a generator, frames are random within each segment. Without one, the point (clip + 0.5) / num_clips of each
    segment is used, which is its center for a single clip. Indices are monotone and in [0, total). Frames repeat if
    total < T.
    """
    _check(total, num_frames, clip, num_clips)
    if generator is None:
        return _tensor(_uniform(total, num_frames, clip, num_clips))
    places = (np.arange(num_frames) + _random(num_frames, generator)) * total / num_frames
    return _tensor(places.astype(np.int64).clip(max=total - 1))


def uniform_time_indices(
    times: Sequence[float],
    num_frames: int,
    *,
    generator: torch.Generator | None = None,
    clip: int = 0,
    num_clips: int = 1,
) -> Tensor:
    """Return the frames on screen at one moment of each of T equal parts of the duration: int64 [T].

    The moments are placed as `uniform_indices` places frames. At a constant frame rate both return the same.

    Args:
        times: N + 1 seconds: when each frame appears, and when the last one ends.
        num_frames: T.
        generator: draws a random moment of each part.
        clip: number of the clip, if there are several fixed ones.
        num_clips: fixed clips of the video.

    Returns:
        Monotone indices in [0, N). Frames that stay on screen repeat.
    """
    _check(len(times) - 1, num_frames, clip, num_clips)
    within = (clip + 0.5) / num_clips if generator is None else _random(num_frames, generator)
    return _tensor(_uniform_in_time(times, num_frames, within))


def dense_indices(
    total: int,
    num_frames: int,
    stride: int,
    *,
    generator: torch.Generator | None = None,
    clip: int = 0,
    num_clips: int = 1,
) -> Tensor:
    """Return T frames, `stride` apart, from one window of the video: int64 [T].

    With a generator the window starts at random. Without one, the windows of `num_clips` clips are spread evenly from
    the start of the video to its end. A single window is in the middle. A window of (T - 1) * stride + 1 frames may be
    longer than the video. The stride then shrinks, possibly to a fraction, until the clip spans the whole video.
    Indices are monotone and in [0, total). Frames repeat if total < T.
    """
    _check(total, num_frames, clip, num_clips)
    if stride < 1:
        raise InputError(f"stride is {stride}; expected at least 1 frame")
    slack = total - 1 - (num_frames - 1) * stride
    if generator is None or slack < 0:
        return _tensor(_dense(total, num_frames, stride, clip, num_clips))
    import torch

    return int(torch.randint(slack + 1, (), generator=generator)) + torch.arange(num_frames) * stride


@dataclass(frozen=True)
class FrameSampling:
    """Sampling of a clip from a video.

    Args:
        name: `uniform` segments over the whole video, or a `dense` window.
        num_frames: Number of frames T in a clip.
        stride: Distance between frames in a dense window. Must be 1 for `uniform`.
        by: `frame` makes the segments of `uniform` equal in number of frames, `time` in seconds of presentation.
    """

    name: Literal["uniform", "dense"] = "uniform"
    num_frames: int = 8
    stride: int = 1
    by: Literal["frame", "time"] = "frame"

    def __post_init__(self) -> None:
        if self.name not in ("uniform", "dense"):
            raise InputError(f"frame sampling is {self.name!r}; expected 'uniform' or 'dense'")
        if self.num_frames < 1 or self.stride < 1:
            raise InputError(f"num_frames {self.num_frames} and stride {self.stride} must be at least 1")
        if self.name == "uniform" and self.stride != 1:
            raise InputError(f"stride {self.stride} is not used by uniform sampling; set it to 1, or use 'dense'")
        if self.by not in ("frame", "time"):
            raise InputError(f"sampling by {self.by!r}; expected 'frame' or 'time'")
        if self.by == "time" and self.name != "uniform":
            raise InputError(f"by: time has no meaning in {self.name} sampling; leave it out, or use 'uniform'")

    @property
    def ignores_time(self) -> bool:
        """True if frames that are spread evenly by number are meant to be spread over the whole video."""
        return self.name == "uniform" and self.by == "frame"

    def indices(
        self,
        total: int,
        times: Sequence[float] | None = None,
        *,
        generator: torch.Generator | None = None,
        clip: int = 0,
        num_clips: int = 1,
    ) -> Tensor:
        """Return the frame indices int64 [T] of one clip; random with a generator.

        Args:
            total: frames of the video, or of the part that clips are taken from.
            times: when each of them appears and when the last one ends, in seconds. Used by time only. None for frames
                without times, which are taken as evenly spaced.
            generator: for random clips.
            clip: number of the clip, if there are several fixed ones.
            num_clips: fixed clips of the video.
        """
        if generator is None:
            return _tensor(self.fixed_indices(total, times, clip, num_clips))
        if self.by == "time" and times is not None:
            _check_times(times, total)
            return uniform_time_indices(times, self.num_frames, generator=generator)
        if self.name == "uniform":
            return uniform_indices(total, self.num_frames, generator=generator)
        return dense_indices(total, self.num_frames, self.stride, generator=generator)

    def fixed_indices(
        self, total: int, times: Sequence[float] | None = None, clip: int = 0, num_clips: int = 1
    ) -> np.ndarray:
        """Return the frame indices int64 [T] of one clip without randomness; see `indices`."""
        _check(total, self.num_frames, clip, num_clips)
        if self.by == "time" and times is not None:
            _check_times(times, total)
            return _uniform_in_time(times, self.num_frames, (clip + 0.5) / num_clips)
        if self.name == "uniform":
            return _uniform(total, self.num_frames, clip, num_clips)
        return _dense(total, self.num_frames, self.stride, clip, num_clips)


def _uniform(total: int, num_frames: int, clip: int, num_clips: int) -> np.ndarray:
    return ((np.arange(num_frames) * num_clips + clip) * 2 + 1) * total // (2 * num_clips * num_frames)


def _uniform_in_time(times: Sequence[float], num_frames: int, within: float | np.ndarray) -> np.ndarray:
    """Return the frames on screen at the share `within` of each part, see `uniform_time_indices`."""
    edges = np.asarray(times, dtype=np.float64)
    # A moment that is the start of a frame, up to rounding, shows that frame.
    moments = edges[0] + ((np.arange(num_frames) + within) / num_frames + 1e-9) * (edges[-1] - edges[0])
    return (np.searchsorted(edges, moments, side="right") - 1).clip(0, len(edges) - 2)


def _dense(total: int, num_frames: int, stride: int, clip: int, num_clips: int) -> np.ndarray:
    position = np.arange(num_frames)
    slack = total - 1 - (num_frames - 1) * stride
    if slack < 0:
        return position * (total - 1) // (num_frames - 1)
    start = slack // 2 if num_clips == 1 else slack * clip // (num_clips - 1)
    return start + position * stride


def _random(count: int, generator: torch.Generator) -> np.ndarray:
    """Draw float64 [count] in [0, 1)."""
    import torch

    return torch.rand(count, generator=generator, dtype=torch.float64).numpy()


def _tensor(indices: np.ndarray) -> Tensor:
    import torch

    return torch.from_numpy(indices.astype(np.int64, copy=False))


def _check_times(times: Sequence[float], total: int) -> None:
    if len(times) != total + 1:
        raise InputError(f"{len(times)} times for {total} frames; expected one more than frames")


def _check(total: int, num_frames: int, clip: int, num_clips: int) -> None:
    if total < 1 or num_frames < 1:
        raise InputError(f"cannot take {num_frames} frames from a video of {total}; both must be at least 1")
    if not 0 <= clip < num_clips:
        raise InputError(f"clip is {clip} of num_clips {num_clips}; expected 0 <= clip < num_clips")
