"""Best windows of an index: exact scores by matrix products over blocks, and one window per event.

Shapes: W windows, E embedding, Q directions.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from clipvid import InputError

_BLOCK = 2**22  # values that are converted to float32 at once


def exact_scores(features: np.ndarray, directions: Tensor) -> np.ndarray:
    """Return the products float32 [W, Q] of all features float16 [W, E] with directions float32 [Q, E].

    Raises:
        InputError: A feature is not finite.
    """
    rows = max(_BLOCK // features.shape[1], 1)
    scores = torch.empty(len(features), len(directions))
    for first in range(0, len(features), rows):
        block = torch.from_numpy(np.array(features[first : first + rows]))
        torch.mm(block.float(), directions.T, out=scores[first : first + rows])
    if not scores.isfinite().all():
        raise InputError("the index is damaged: it has features that are not finite; delete it and index again")
    return scores.numpy()


def best_apart(scores: np.ndarray, owners: np.ndarray, times: np.ndarray, count: int) -> list[int]:
    """Return the `count` best windows of which no two overlap in one video, best first.

    This is non-maximum suppression in time: a window is left out if it overlaps a better one that is not left out.
    Equal scores are in the order of the windows.

    Args:
        scores: [W].
        owners: Number of the video of each window, [W].
        times: Start and end of each window in seconds, [W, 2].
        count: Largest number of windows.
    """
    candidates = 16 * count
    while True:
        chosen = _apart(_highest(scores, candidates), owners, times, count)
        if len(chosen) == count or candidates >= len(scores):
            return chosen
        candidates *= 4


def _highest(scores: np.ndarray, count: int) -> np.ndarray:
    """Return the `count` highest windows and those that are equal to the last of them, best first."""
    rows = np.arange(len(scores))
    if count < len(scores):
        limit = np.partition(scores, len(scores) - count)[len(scores) - count]
        rows = np.flatnonzero(scores >= limit)
    return rows[np.lexsort((rows, -scores[rows]))]


def _apart(rows: np.ndarray, owners: np.ndarray, times: np.ndarray, count: int) -> list[int]:
    """Return the first `count` of sorted windows that do not overlap an earlier one of the same video."""
    chosen: list[int] = []
    taken: dict[int, list[tuple[float, float]]] = {}
    for row in rows.tolist():
        start, end = times[row].tolist()
        spans = taken.setdefault(int(owners[row]), [])
        if all(end <= other_start or other_end <= start for other_start, other_end in spans):
            spans.append((start, end))
            chosen.append(row)
            if len(chosen) == count:
                break
    return chosen
