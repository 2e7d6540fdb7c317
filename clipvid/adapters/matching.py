"""One-to-one assignment of the patches of two frames: exact, or greedy and on the device.

Kuhn-Munkres' problem (Kuhn 1955, https://doi.org/10.1002/nav.3800020109). `exact` is scipy's solver, on the CPU;
`greedy` takes the best pair that is left, and the best after it, all matrices and many pairs at once.

Shapes: M matrices (any leading axes), N x N similarities, row i is matched with column perm[i].
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from math import ceil, log2
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from clipvid import InputError
from clipvid.registry import check_option

Solver = Literal["exact", "greedy"]
SOLVERS = ("exact", "greedy")


def assign(similarity: Tensor, solver: Solver = "exact") -> Tensor:
    """Which column each row is matched with, so that the total similarity is large; no gradient.

    Args:
        similarity: [..., N, N], floating point, on any device.
        solver: `exact` reaches the largest total there is. It runs on the CPU, on as many threads as
            `torch.get_num_threads()`, and waits for the device. `greedy` never leaves the device nor waits for it:
            the best pair that is left, again and again, where equal pairs prefer the smaller (column - row) mod N.
            After 2 log2(N) + 4 rounds of all pairs that are each other's best, what is left is paired in order.
            `matching_gap` says what it misses.

    Returns:
        Permutations [..., N] in int64 on the device of `similarity`.

    Raises:
        ValueError: matrices that are not square or not of floating point; an unknown solver; with `exact`, NaN or
            infinite similarities (`greedy` would have to wait for the device to see them: it gives some permutation).
    """
    check_option("matching", "solver", solver, SOLVERS)
    sides = similarity.shape[-2:]
    if len(sides) < 2 or sides[0] != sides[1] or sides[0] < 1 or not similarity.is_floating_point():
        raise InputError(
            f"similarity: expected matrices [..., N, N], N >= 1, of floating point, "
            f"got {list(similarity.shape)} of {similarity.dtype}"
        )
    return (_assign_exact if solver == "exact" else _assign_greedy)(similarity.detach())


def matched_similarity(similarity: Tensor, perm: Tensor) -> Tensor:
    """Total similarity of matched pairs: [..., N, N] and permutations [..., N] -> [...], in float32 at least."""
    matched = similarity.gather(-1, perm.unsqueeze(-1)).squeeze(-1)
    return matched.to(torch.promote_types(matched.dtype, torch.float32)).sum(-1)


def matching_gap(similarity: Tensor, perm: Tensor) -> Tensor:
    """What a matching misses of the largest total similarity, relative to its magnitude.

    similarity [..., N, N], perm [..., N] -> [...]: 0 for an optimal one; infinite for another where the largest total
    is 0. Solves exactly to know, so it raises what `assign` raises.
    """
    best = matched_similarity(similarity, assign(similarity))
    missing = (best - matched_similarity(similarity, perm)).clamp(min=0)
    return torch.where(missing > 0, missing / best.abs(), 0)


def invert(perm: Tensor) -> Tensor:
    """The inverses of permutations [..., N]."""
    places = torch.arange(perm.shape[-1], device=perm.device).expand_as(perm)
    return torch.zeros_like(perm).scatter(-1, perm, places)


@torch.library.custom_op("clipvid::assign_exact", mutates_args=())
def _assign_exact(similarity: Tensor) -> Tensor:
    """An operator of its own, because a compiled graph cannot look into scipy."""
    from scipy.optimize import linear_sum_assignment

    size = similarity.shape[-1]
    matrices = similarity.cpu().double().reshape(similarity.shape[:-2].numel(), size, size).numpy()
    nan, infinite = int(np.isnan(matrices).sum()), int(np.isinf(matrices).sum())
    if nan or infinite:
        raise InputError(
            f"similarity: {nan} NaN and {infinite} infinite of {matrices.size} values in matrices {size} x {size}; "
            f"expected finite ones: look for an overflow in the tokens that were compared"
        )
    columns = np.empty(matrices.shape[:2], dtype=np.int64)

    def solve(indices: np.ndarray) -> None:
        for index in indices:
            columns[index] = linear_sum_assignment(matrices[index], maximize=True)[1]

    threads = max(1, min(torch.get_num_threads(), len(matrices)))
    with ThreadPoolExecutor(threads) as pool:  # scipy lets go of the interpreter's lock while it solves
        list(pool.map(solve, np.array_split(np.arange(len(matrices)), threads)))
    return torch.from_numpy(columns).view(similarity.shape[:-1]).to(similarity.device)


@_assign_exact.register_fake
def _(similarity: Tensor) -> Tensor:
    return similarity.new_empty(similarity.shape[:-1], dtype=torch.int64)


def _assign_greedy(similarity: Tensor) -> Tensor:
    size = similarity.shape[-1]
    rank = _rank(similarity.reshape(similarity.shape[:-2].numel(), size, size))
    places = torch.arange(size, device=rank.device)
    perm = torch.full_like(rank[..., 0], -1)
    for _ in range(2 * ceil(log2(size)) + 4):
        chosen = (rank == rank.amax(-1, keepdim=True)) & (rank == rank.amax(-2, keepdim=True)) & (rank >= 0)
        taken_row, taken_column = chosen.any(-1, keepdim=True), chosen.any(-2, keepdim=True)
        perm = torch.where(taken_row.squeeze(-1), (chosen * places).sum(-1), perm)
        rank = rank.masked_fill(taken_row | taken_column, -1)
    return _complete(perm).view(similarity.shape[:-1])


def _rank(matrices: Tensor) -> Tensor:
    """Distinct integers [M, N, N] in the order of the similarities; of equal ones the smaller offset ranks higher."""
    count, size, _ = matrices.shape
    places = torch.arange(size, device=matrices.device)
    column = (places + places.unsqueeze(-1)) % size  # [offset, row]: of the pair at that offset
    by_offset = matrices.transpose(-1, -2).gather(1, column.expand(count, -1, -1))
    order = by_offset.flatten(1).argsort(dim=-1, descending=True, stable=True)
    rank = (size * size - 1 - invert(order)).view(count, size, size)
    offset = (places.unsqueeze(-1) - places) % size  # [column, row]
    return rank.gather(1, offset.expand(count, -1, -1)).transpose(-1, -2)


def _complete(perm: Tensor) -> Tensor:
    """Permutations [M, N] whose rows without a column (-1) get the free columns, both in order."""
    free_row = perm < 0
    rows = free_row.long().argsort(dim=-1, descending=True, stable=True)
    used = torch.zeros_like(perm).scatter_reduce(-1, perm.clamp(min=0), (~free_row).long(), "amax")
    columns = used.argsort(dim=-1, stable=True)
    filled = torch.where(free_row.gather(-1, rows), columns, perm.gather(-1, rows))
    return perm.scatter(-1, rows, filled)
