"""Exported models in onnxruntime.

Shapes: B clips, T frames, S image side, K classes, E embedding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from clipvid import InputError, RunError
from clipvid.files import one_line
from clipvid.inference.exported.onnx_file import read_metadata
from clipvid.inference.exported.record import KEY, ExportRecord

_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
_FATAL = 4  # level of onnxruntime's log; errors are raised too


def read_record(path: Path) -> ExportRecord:
    """Return the description of an exported model. Nothing is run.

    Raises:
        InputError: The file is not a model of `clipvid export`, see also `read_metadata`.
    """
    text = read_metadata(path, KEY)
    if text is None:
        raise InputError(f"{path}: an ONNX file without clipvid's description; expected a model of clipvid export")
    return ExportRecord.from_json(text, str(path))


class OnnxModel:
    """Exported model, run by onnxruntime.

    Args:
        path: File of `clipvid export --format onnx`.
        threads: Threads of the CPU, by default those that onnxruntime chooses.

    Raises:
        InputError: onnxruntime is not installed, or the file is not a model that it can run.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        self.path = Path(path)
        self.record = read_record(self.path)
        try:
            import onnxruntime
        except ImportError:
            raise InputError(f"{path} needs onnxruntime: pip install 'clipvid[onnx]'") from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL
        if threads is not None:
            options.intra_op_num_threads = threads
        available = onnxruntime.get_available_providers()
        try:
            self._session: Any = onnxruntime.InferenceSession(
                self.path, options, providers=[name for name in _PROVIDERS if name in available]
            )
        except Exception as error:  # its errors have no common base class
            raise InputError(f"{path}: onnxruntime cannot load it ({one_line(error, 200)})") from None
        self._check_signature()

    def __call__(self, frames: np.ndarray, text: np.ndarray | None = None) -> np.ndarray:
        """Return the probabilities float32 [B, K] of clips.

        Args:
            frames: uint8 [B, T, S, S, 3], RGB.
            text: Text features float32 [K, E], for a model that has them as an input.

        Raises:
            InputError: An array has another type or shape, or `text` does not fit the model.
            RunError: onnxruntime fails.
        """
        record, size = self.record, self.record.image_size
        if frames.dtype != np.uint8 or frames.ndim != 5 or frames.shape[2:] != (size, size, 3) or not len(frames):
            raise InputError(
                f"frames are {frames.dtype} {list(frames.shape)}; expected uint8 [B, T, {size}, {size}, 3]"
            )
        record.check_frames(frames.shape[1], str(self.path))
        if (text is None) != (record.classes is not None):
            has = "its classes inside" if record.classes is not None else "text features as an input"
            raise InputError(f"{self.path}: the model has {has}; text is {'missing' if text is None else 'not used'}")
        inputs = {"frames": frames}
        if text is not None:
            if text.ndim != 2 or text.shape[1] != record.embed_dim or not len(text):
                raise InputError(f"text is {list(text.shape)}; expected [K, {record.embed_dim}]")
            inputs["text"] = text.astype(np.float32, copy=False)
        try:
            (probabilities,) = self._session.run(["probabilities"], inputs)
        except Exception as error:  # see above
            raise RunError(f"{self.path}: onnxruntime failed ({one_line(error, 200)})") from None
        if record.classes is not None and probabilities.shape != (len(frames), len(record.classes)):
            raise InputError(
                f"{self.path}: the graph returns {list(probabilities.shape)} for {len(frames)} clips and "
                f"{len(record.classes)} classes; export the model again"
            )
        return np.asarray(probabilities)

    def _check_signature(self) -> None:
        expected = {"frames": "tensor(uint8)"} | ({"text": "tensor(float)"} if self.record.classes is None else {})
        inputs = {value.name: value.type for value in self._session.get_inputs()}
        outputs = [value.name for value in self._session.get_outputs()]
        if inputs != expected or outputs != ["probabilities"]:
            raise InputError(f"{self.path}: its inputs and outputs are not those of a model of clipvid export")
