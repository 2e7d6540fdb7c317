"""An explanation in words.

Shapes: T frames, H x W patches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipvid.inference.explain.reasons import Reasons

_ROWS, _COLUMNS = ("top", "", "bottom"), ("left", "", "right")
_MOVED = 0.2


def describe(reasons: Reasons) -> str:
    """Return which frames and places an answer rests on, and the answer for reversed frames."""
    share = float(reasons.probabilities[reasons.target.label])
    is_answer = reasons.target.label == int(reasons.probabilities.argmax())
    kind = "answer" if is_answer else "class"
    against = "" if reasons.against is None else f", rather than “{reasons.against}”,"
    frames = main_frames(reasons)
    whole = len(frames) == len(reasons.frames)
    when = "on all frames" if whole else f"most on {frame_ranges(frames)}"
    first = f"The {kind} “{reasons.label}” ({share:.0%}){against} rests {when}, {place_words(reasons, frames)}."
    if reasons.time is None or not reasons.time.orders:
        return first
    answer = reasons.labels[int(reasons.probabilities.argmax())]
    backwards = reasons.time.orders[0]
    turned = reasons.labels[backwards.label]
    if turned == answer:
        return f"{first} Played backwards, the clip gets the same answer ({backwards.probability:.0%})."
    return f"{first} Played backwards, the clip gets the answer “{turned}” ({backwards.probability:.0%})."


def main_frames(reasons: Reasons) -> list[int]:
    """Return the frames with at least half the importance of the most important one.

    Importance is that of `Reasons.time`, or else the share of the relevance.
    """
    values = reasons.relevance.flatten(1).sum(dim=1) if reasons.time is None else reasons.time.frames
    top = float(values.max())
    if top <= 0:
        return list(range(len(values)))
    return [index for index, value in enumerate(values.tolist()) if value >= top / 2]


def frame_ranges(frames: list[int]) -> str:
    """Return frames, counted from 0, as text with numbers from 1: `frames 2-5 and 7`."""
    parts: list[list[int]] = []
    for frame in frames:
        if parts and frame == parts[-1][-1] + 1:
            parts[-1].append(frame)
        else:
            parts.append([frame])
    texts = [str(part[0] + 1) if len(part) == 1 else f"{part[0] + 1}-{part[-1] + 1}" for part in parts]
    listed = texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
    return f"{'frame' if frames == frames[:1] else 'frames'} {listed}"


def place_words(reasons: Reasons, frames: list[int]) -> str:
    """Return the place of the relevance in the first and the last of the frames in words.

    It moves if these are apart by at least `_MOVED` of the picture.
    """
    first, last = (center_of(reasons.relevance[frame]) for frame in (frames[0], frames[-1]))
    start, end = place_of(first), place_of(last)
    if torch.dist(first, last) < _MOVED:
        return f"at the {place_of((first + last) / 2)} of the picture"
    if start != end:
        return f"moving from the {start} to the {end} of the picture"
    return f"moving {_direction(last - first)} at the {start} of the picture"


def _direction(step: Tensor) -> str:
    across, down = step.tolist()
    if abs(across) >= abs(down):
        return "right" if across > 0 else "left"
    return "down" if down > 0 else "up"


def center_of(relevance: Tensor) -> Tensor:
    """Return the mean place (x, y), in shares of the picture, of the patches [H, W] with half of the highest value."""
    rows, columns = (relevance >= relevance.max() / 2).nonzero(as_tuple=True)
    height, width = relevance.shape
    return torch.stack([(columns + 0.5).mean() / width, (rows + 0.5).mean() / height])


def place_of(center: Tensor) -> str:
    """Return a place (x, y) in words, on a grid of three by three places."""
    column, row = (min(2, int(3 * share)) for share in center.tolist())
    return " ".join(filter(None, (_ROWS[row], _COLUMNS[column]))) or "middle"
