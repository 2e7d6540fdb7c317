"""Approximate search in a graph of usearch, an optional package, for indexes of millions of windows.

Shapes: W windows, E embedding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from clipvid import InputError
from clipvid.files import replacing

_BLOCK = 2**16  # features that are added at once


def build_graph(features: np.ndarray, path: Path) -> None:
    """Write the graph of features float16 [W, E].

    Raises:
        InputError: usearch is not installed.
    """
    graph = _usearch()(ndim=features.shape[1], metric="ip", dtype="f16")
    for first in range(0, len(features), _BLOCK):
        part = np.array(features[first : first + _BLOCK])
        graph.add(np.arange(first, first + len(part), dtype=np.uint64), part)
    with replacing(path) as aside:
        graph.save(str(aside))


def near_windows(path: Path, features: np.ndarray, query: np.ndarray, count: int) -> np.ndarray:
    """Return the numbers of about `count` windows with the highest products with a query float32 [E], sorted.

    Raises:
        InputError: usearch is not installed, the index has no graph, or the graph is damaged.
    """
    index_class = _usearch()
    if not path.is_file():
        raise InputError(f"{path.parent} has no graph for approximate search; add it by clipvid index ... --graph")
    graph = index_class(ndim=features.shape[1], metric="ip", dtype="f16")
    try:
        graph.view(str(path))
        keys = np.asarray(graph.search(query.astype(np.float16), min(count, len(features))).keys)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}); delete it and run clipvid index ... --graph") from None
    if len(graph) != len(features) or (len(keys) and int(keys.max()) >= len(features)):
        raise InputError(f"{path} does not fit the index; delete it and run clipvid index ... --graph")
    return np.unique(keys).astype(np.int64)


def check_usearch() -> None:
    """Raise InputError if usearch is not installed."""
    _usearch()


def _usearch() -> Any:
    """Return usearch's class of graphs, imported on first use."""
    try:
        from usearch.index import Index
    except ImportError:
        raise InputError("approximate search needs usearch; install it: pip install 'clipvid[search]'") from None
    return Index
