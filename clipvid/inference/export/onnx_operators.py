"""Operators that torch.onnx does not translate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset18

op: Any = opset18  # its annotations know fewer types than torch.onnx passes


def stable_sort(values: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
    """Translate `torch.sort`. ONNX's TopK puts the smaller index first among equal values, so it is stable."""
    axis = op.Constant(value_ints=[dim])
    length = op.Gather(op.Shape(values), axis, axis=0)
    return op.TopK(values, length, axis=dim, largest=int(descending), sorted=1)


TRANSLATIONS: dict[Callable[..., Any], Any] = {torch.ops.aten.sort.stable: stable_sort}
