"""Functions applied to parts of a long input, so that memory does not grow with it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def apply_in_parts(function: Callable[[Tensor], Tensor], rows: Tensor, size: int) -> Tensor:
    """Return `function(rows)` of a function that treats each row by itself, computed `size` rows at a time.

    The results are written into one tensor. Small results kept between large temporary tensors would leave holes
    in memory, which would grow all the same.

    Args:
        function: [N, ...] -> [N, E]. Its results must need no gradient.
        rows: [K, ...].
        size: N of all parts but the last.
    """
    if len(rows) <= size:
        return function(rows)
    result: Tensor | None = None
    for start in range(0, len(rows), size):
        part = function(rows[start : start + size])
        if result is None:
            result = part.new_empty(len(rows), *part.shape[1:])
        result[start : start + size] = part
        del part
    assert result is not None
    return result
