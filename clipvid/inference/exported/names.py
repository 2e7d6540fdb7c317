"""Names of the files of exported models."""

from __future__ import annotations

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}


def is_onnx(model: str) -> bool:
    """Return True for the name of an ONNX file."""
    return model.lower().endswith(SUFFIXES["onnx"])
