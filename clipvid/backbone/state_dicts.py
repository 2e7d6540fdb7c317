"""Comparison and strict loading of state dicts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from clipvid import InputError


def hash_tensors(digest: hashlib._Hash, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Update a hash with names, shapes, types and bytes of tensors, in their order."""
    for name, value in tensors:
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def mismatches(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Return the reasons why `state` cannot be loaded into `own`: missing or unexpected names, and different shapes."""
    shapes = [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own.keys() & state.keys()
        if own[name].shape != state[name].shape
    ]
    missing = [f"missing {name}" for name in own.keys() - state.keys()]
    unexpected = [f"unexpected {name}" for name in state.keys() - own.keys()]
    return [*sorted(shapes), *sorted(missing), *sorted(unexpected)]


def shortened(problems: list[str]) -> str:
    """Join the first eight problems and the number of further ones."""
    return "; ".join(problems[:8]) + (f" and {len(problems) - 8} more" if len(problems) > 8 else "")


def load_strictly(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Copy `state` into the tensors of `own`, a model's `trained_state()` or `saved_state()`.

    Raises:
        InputError: Names or shapes differ. The message lists them.
    """
    problems = mismatches(own, state)
    if problems:
        raise InputError(f"the weights do not fit the model's config: {shortened(problems)}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])
