"""One-to-one assignment of the patches of two frames.

Both solvers address the assignment problem (Kuhn 1955, https://doi.org/10.1002/nav.3800020109). `exact` calls scipy's
solver on the CPU. `greedy` repeatedly takes the best remaining pair, for all matrices and many pairs at once on the
device.

Shapes: M matrices (any leading axes), N x N similarities, row i is matched with column perm[i].
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from math import ceil, log2, prod
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from clipvid import InputError
from clipvid.registry import check_option

Solver = Literal["exact", "greedy"]
SOLVERS = ("exact", "greedy")


def assign(similarity: Tensor, solver: Solver = "exact") -> Tensor:
    """Match each row with one column so that the total similarity is large. Carries no gradient.

    Args:
        similarity: [..., N, N], floating point, on any device.
        solver: `exact` reaches the maximal total. It runs on the CPU, on `torch.get_num_threads()` threads, and
            synchronizes with the device. `greedy` stays on the device without synchronization. It repeatedly takes the
            best remaining pair; ties go to the smaller (column - row) mod N. After 2 log2(N) + 4 rounds that take all
            mutually best pairs, the remaining rows and columns are paired in order. `matching_gap` measures the loss.

    Returns:
        Permutations [..., N] in int64 on the device of `similarity`.

    Raises:
        InputError: The matrices are not square or not floating point, or the solver is unknown. `exact` also refuses
            NaN and infinite values; `greedy` returns an arbitrary permutation, since a check would synchronize with the
            device.
    """
    check_option("matching", "solver", solver, SOLVERS)
    sides = similarity.shape[-2:]
    if len(sides) < 2 or sides[0] != sides[1] or sides[0] < 1 or not similarity.is_floating_point():
        raise InputError(
            f"similarity: expected floating-point matrices [..., N, N] with N >= 1, "
            f"got {list(similarity.shape)} of {similarity.dtype}"
        )
    return (_assign_exact if solver == "exact" else _assign_greedy)(similarity.detach())


def matched_similarity(similarity: Tensor, perm: Tensor) -> Tensor:
    """Sum the similarities [..., N, N] of the pairs in permutations [..., N], at least in float32."""
    matched = similarity.gather(-1, perm.unsqueeze(-1)).squeeze(-1)
    return matched.to(torch.promote_types(matched.dtype, torch.float32)).sum(-1)


def matching_gap(similarity: Tensor, perm: Tensor) -> Tensor:
    """Return the relative gap between a matching and the maximal total similarity.

    The gap is 0 for an optimal matching. It is infinite for any other matching if the maximal total is 0. Calls the
    exact solver and raises the errors of `assign`.

    Args:
        similarity: [..., N, N].
        perm: Permutations [..., N].
    """
    best = matched_similarity(similarity, assign(similarity))
    missing = (best - matched_similarity(similarity, perm)).clamp(min=0)
    return torch.where(missing > 0, missing / best.abs(), 0)


def invert(perm: Tensor) -> Tensor:
    """Invert permutations [..., N]."""
    places = torch.arange(perm.shape[-1], device=perm.device).expand_as(perm)
    return torch.zeros_like(perm).scatter(-1, perm, places)


@torch.library.custom_op("clipvid::assign_exact", mutates_args=())
def _assign_exact(similarity: Tensor) -> Tensor:
    """Call scipy's solver. A custom operator, because a compiled graph cannot trace scipy."""
    from scipy.optimize import linear_sum_assignment

    size = similarity.shape[-1]
    matrices = similarity.cpu().double().reshape(similarity.shape[:-2].numel(), size, size).numpy()
    nan, infinite = int(np.isnan(matrices).sum()), int(np.isinf(matrices).sum())
    if nan or infinite:
        raise InputError(
            f"similarity: {nan} NaN and {infinite} infinite of {matrices.size} values in matrices {size} x {size}; "
            f"expected finite values: check for an overflow in the compared tokens"
        )
    columns = np.empty(matrices.shape[:2], dtype=np.int64)

    def solve(indices: np.ndarray) -> None:
        for index in indices:
            columns[index] = linear_sum_assignment(matrices[index], maximize=True)[1]

    threads = max(1, min(torch.get_num_threads(), len(matrices)))
    with ThreadPoolExecutor(threads) as pool:  # scipy releases the GIL while it solves
        list(pool.map(solve, np.array_split(np.arange(len(matrices)), threads)))
    return torch.from_numpy(columns).view(similarity.shape[:-1]).to(similarity.device)


@_assign_exact.register_fake
def _(similarity: Tensor) -> Tensor:
    if torch.onnx.is_in_onnx_export():
        raise InputError("solver: exact calls scipy, which an ONNX graph cannot contain; use solver: greedy")
    return similarity.new_empty(similarity.shape[:-1], dtype=torch.int64)


def _assign_greedy(similarity: Tensor) -> Tensor:
    size = similarity.shape[-1]
    rank = _rank(similarity.reshape(prod(similarity.shape[:-2]), size, size))
    places = torch.arange(size, device=rank.device)
    perm = torch.full_like(rank[..., 0], -1)
    for _ in range(2 * ceil(log2(size)) + 4):
        chosen = (rank == rank.amax(-1, keepdim=True)) & (rank == rank.amax(-2, keepdim=True)) & (rank >= 0)
        taken_row, taken_column = chosen.any(-1, keepdim=True), chosen.any(-2, keepdim=True)
        perm = torch.where(taken_row.squeeze(-1), (chosen * places).sum(-1), perm)
        rank = rank.masked_fill(taken_row | taken_column, -1)
    return _complete(perm).view(similarity.shape[:-1])


def _rank(matrices: Tensor) -> Tensor:
    """Rank similarities as distinct integers [M, N, N]. Among equal ones the smaller offset ranks higher."""
    count, size, _ = matrices.shape
    places = torch.arange(size, device=matrices.device)
    column = (places + places.unsqueeze(-1)) % size  # [offset, row] -> column of the pair
    by_offset = matrices.transpose(-1, -2).gather(1, column.expand(count, -1, -1))
    order = by_offset.flatten(1).argsort(dim=-1, descending=True, stable=True)
    rank = (size * size - 1 - invert(order)).view(count, size, size)
    offset = (places.unsqueeze(-1) - places) % size  # [column, row]
    return rank.gather(1, offset.expand(count, -1, -1)).transpose(-1, -2)


def _complete(perm: Tensor) -> Tensor:
    """Fill rows without a column (-1) of permutations [M, N] with the free columns, both in order."""
    free_row = perm < 0
    rows = free_row.long().argsort(dim=-1, descending=True, stable=True)
    used = torch.zeros_like(perm).scatter_reduce(-1, perm.clamp(min=0), (~free_row).long(), "amax")
    columns = used.argsort(dim=-1, stable=True)
    filled = torch.where(free_row.gather(-1, rows), columns, perm.gather(-1, rows))
    return perm.scatter(-1, rows, filled)
