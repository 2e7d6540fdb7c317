"""Near copies of clips: re-encoded, resized, trimmed, mirrored or letterboxed.

Two clips are compared by their signatures. Candidates have similar mean pictures. A candidate is a copy if its frames
match those of the other clip in order. They must match far better than the clip's frames match each other.

Shapes: N clips, S frames of a signature, D = P x P pixels of a picture, C candidate pairs, H alignments.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import max_pool1d

from clipvid.inspection.signatures import ClipFacts

NEAREST = 20  # candidates of a clip
_CANDIDATE = 0.5  # distance of mean pictures; 2 for unrelated ones
_MOST = 0.1  # residual that no copy exceeds
_SHORTEST = 0.4  # share of a clip that a trimmed copy keeps
_RIVAL = 5  # the number of the nearest other clip that shows how alike different clips of a data set are
_EQUAL = 0.98  # ratio of lengths above which no clip is trimmed
_BAR = 0.03  # change of a bar, as a share of the frame
_SIZE = 0.02  # change of a side; encoders cut odd sides to even ones
# Limits of the residual of copies of equal length and of trimmed ones: at least `noise`, otherwise shares of the motion
# of the clip and of the distance of its rivals. Trimmed ones have many alignments, of which one may fit by chance.
_LIMITS = ({"noise": 0.002, "motion": 0.33, "rivals": 0.1}, {"noise": 0.0023, "motion": 0.1, "rivals": 0.02})
_ROUNDING = 1e-5  # residual of equal pixels
_CONTRAST = 8.0  # gray values; flat frames are not stretched beyond noise
_ROWS, _PAIRS = 1024, 1024  # that are compared at once


@dataclass(frozen=True)
class Duplicate:
    """Two clips with the same content.

    Attributes:
        first: Number of a clip.
        second: Number of a later clip.
        changes: What differs: any of `mirrored`, `letterboxed`, `resized`, `trimmed`; `re-encoded` if nothing else
            does, and nothing for equal pixels.
        residual: Mean squared difference of matched pictures, in units of their contrast.
    """

    first: int
    second: int
    changes: tuple[str, ...]
    residual: float


def find_duplicates(signatures: Tensor, facts: Sequence[ClipFacts]) -> list[Duplicate]:
    """Return all pairs of copies, by position in `signatures`, best match first.

    Args:
        signatures: uint8 [N, S, P, P].
        facts: Of the clips.
    """
    rows = signatures.split(_ROWS)
    means = torch.cat([normalized(part).mean(dim=1) for part in rows])
    motion = torch.cat([motion_energy(normalized(part)) for part in rows])
    rivals = _rivals(means)
    lengths = torch.tensor([own.seconds or float(own.frames) for own in facts])
    best: dict[tuple[int, int], tuple[float, bool]] = {}
    for is_mirrored in (False, True):
        others = torch.cat([normalized(part.flip(-1)).mean(dim=1) for part in rows]) if is_mirrored else means
        for pairs in _candidates(means, others):
            shorter, longer = _by_length(pairs, lengths)
            whole = signatures[longer].flip(-1) if is_mirrored else signatures[longer]
            shares = lengths[shorter] / lengths[longer]
            residuals = aligned_residuals(normalized(signatures[shorter]), normalized(whole), shares)
            limits = _limits(motion, rivals, lengths, shorter, longer)
            for place in (residuals <= limits).nonzero().flatten().tolist():
                pair, residual = (int(pairs[place, 0]), int(pairs[place, 1])), float(residuals[place])
                if pair not in best or residual < best[pair][0]:
                    best[pair] = (residual, is_mirrored)
    copies = [
        Duplicate(*pair, _changes(facts[pair[0]], facts[pair[1]], residual, is_mirrored), residual)
        for pair, (residual, is_mirrored) in best.items()
    ]
    return sorted(copies, key=lambda copy: (copy.residual, copy.first, copy.second))


def normalized(signatures: Tensor) -> Tensor:
    """Return signatures uint8 [N, S, P, P] with mean 0 and standard deviation 1 in each frame: float32 [N, S, D].

    Rows are divided by the root of D, so that a squared distance is a mean over pixels.
    """
    flat = rearrange(signatures, "n s h w -> n s (h w)").float()
    flat -= flat.mean(dim=-1, keepdim=True)
    root = flat.shape[-1] ** 0.5
    length = torch.linalg.vector_norm(flat, dim=-1, keepdim=True)
    return flat.div_(length.clamp_min_(_CONTRAST * root))


def motion_energy(frames: Tensor) -> Tensor:
    """Return the mean squared distance of the frames of a clip [N, S, D] from their mean: [N]."""
    return (frames - frames.mean(dim=1, keepdim=True)).square().sum(dim=-1).mean(dim=-1)


def aligned_residuals(shorter: Tensor, longer: Tensor, shares: Tensor) -> Tensor:
    """Return the mean squared distance of the frames of clips [C, S, D] in their best alignment: [C].

    The shorter clip is laid over a part of the longer one. Clips of equal length have one alignment, frame by frame. In
    others a frame falls between two samples of the longer clip, so it may match one of three neighbors.

    Args:
        shorter: Frames of the clips that may be a part.
        longer: Frames of the clips that may be the whole.
        shares: Length of the shorter by that of the longer one [C], at most 1. Small ones give an infinite residual.
    """
    count = shorter.shape[1]
    residuals = (shorter - longer).square_().sum(dim=-1).mean(dim=-1)
    kept = torch.where(shares < _EQUAL, (shares * count).round(), -1.0).long()
    rows, middles = torch.arange(count), torch.arange(count) + 0.5
    for length in kept[kept >= 0].unique().tolist():
        chosen = kept == length
        if length < _SHORTEST * count:
            residuals[chosen] = torch.inf
            continue
        near = -max_pool1d(-_frame_distances(shorter[chosen], longer[chosen]), 3, stride=1, padding=1)
        starts = torch.arange(count - length + 1)[:, None]
        columns = (starts + middles * length / count).long()
        residuals[chosen] = near[:, rows.expand_as(columns), columns].mean(dim=-1).amin(dim=1)
    return residuals


def _frame_distances(first: Tensor, second: Tensor) -> Tensor:
    """Return the squared distances of all frames of pairs of clips [C, S, D]: [C, S, S]."""
    squares = first.square().sum(-1)[:, :, None] + second.square().sum(-1)[:, None, :]
    return (squares - 2 * torch.einsum("csd,ctd->cst", first, second)).clamp_min(0)


def clusters(duplicates: Sequence[Duplicate], count: int) -> list[int]:
    """Return for each of `count` clips the smallest number among the clips that it is a copy of, directly or not."""
    parent = list(range(count))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    for copy in duplicates:
        low, high = sorted((root(copy.first), root(copy.second)))
        parent[high] = low
    return [root(place) for place in range(count)]


def _rivals(means: Tensor) -> Tensor:
    """Return the distance of the mean picture of each clip [N, D] to that of its `_RIVAL`-th nearest: [N]."""
    if len(means) <= _RIVAL:
        return torch.full((len(means),), torch.inf)
    nearest = [_distances(rows, means).topk(_RIVAL + 1, dim=1, largest=False).values for rows in means.split(_ROWS)]
    return torch.cat(nearest)[:, -1]


def _distances(rows: Tensor, columns: Tensor) -> Tensor:
    """Return the squared distances of rows [R, D] to columns [C, D]: [R, C]."""
    return rows.square().sum(1)[:, None] + columns.square().sum(1)[None] - 2 * rows @ columns.T


def _limits(motion: Tensor, rivals: Tensor, lengths: Tensor, shorter: Tensor, longer: Tensor) -> Tensor:
    """Return the largest residual of a copy for each pair of clips: [C]."""
    own_motion = torch.minimum(motion[shorter], motion[longer])
    own_rivals = torch.minimum(rivals[shorter], rivals[longer])
    equal, trimmed = (
        torch.maximum(limit["motion"] * own_motion, limit["rivals"] * own_rivals).clamp(limit["noise"], _MOST)
        for limit in _LIMITS
    )
    return torch.where(lengths[shorter] >= _EQUAL * lengths[longer], equal, trimmed)


def _by_length(pairs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return the shorter and the longer clip of each pair [C, 2]: [C] each."""
    first, second = pairs.unbind(1)
    is_shorter = lengths[first] <= lengths[second]
    return torch.where(is_shorter, first, second), torch.where(is_shorter, second, first)


def _candidates(means: Tensor, others: Tensor) -> Iterator[Tensor]:
    """Yield pairs int64 [C, 2] of clips with similar mean pictures [N, D], the first number below the second."""
    count = len(means)
    held: list[Tensor] = []
    for start in range(0, count, _ROWS):
        rows = means[start : start + _ROWS]
        distances = _distances(rows, others)
        own = torch.arange(len(rows))
        distances[own, start + own] = torch.inf
        near, places = distances.topk(min(NEAREST, count), dim=1, largest=False)
        row, column = (near < _CANDIDATE).nonzero().unbind(1)
        pairs = torch.stack([row + start, places[row, column]], dim=1)
        held.append(pairs.sort(dim=1).values)
    unique = torch.cat(held).unique(dim=0) if held else torch.empty(0, 2, dtype=torch.long)
    yield from unique.split(_PAIRS) if len(unique) else ()


def _changes(first: ClipFacts, second: ClipFacts, residual: float, is_mirrored: bool) -> tuple[str, ...]:
    changes = ["mirrored"] * is_mirrored
    if max(abs(own - other) for own, other in zip(first.bars, second.bars, strict=True)) > _BAR:
        changes.append("letterboxed")
    elif max(abs(first.width / second.width - 1), abs(first.height / second.height - 1)) > _SIZE:
        changes.append("resized")
    lengths = sorted(own.seconds or float(own.frames) for own in (first, second))
    if lengths[0] < _EQUAL * lengths[1]:
        changes.append("trimmed")
    return tuple(changes) if changes or residual < _ROUNDING else ("re-encoded",)
