"""Comparison of sizes that may be free in an exported graph."""

from __future__ import annotations


def has_length(length: int, expected: int) -> bool:
    """Return True if an axis has the expected length. False for a free axis of an exported graph.

    A comparison of a free axis would fix its length, or exclude the expected one.
    """
    return isinstance(length, int) and length == expected
