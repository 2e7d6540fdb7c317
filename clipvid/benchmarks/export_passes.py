"""Passes of one model in PyTorch, in a program of torch.export and in onnxruntime.

Nothing imports torch before a runtime needs it, so that the memory of onnxruntime is measured without torch.

Shapes: B clips, T frames, S image side.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from clipvid.inference.exported.onnx_model import OnnxModel
from clipvid.registry import Choice

if TYPE_CHECKING:
    from clipvid.model.video_clip import VideoCLIP

LABELS = ["a ball", "a box", "a star"]
RUNTIMES = ("eager", "torch", "onnx")


@dataclass(frozen=True)
class Source:
    """Model to measure, and the files that it was exported to."""

    backbone: str
    pretrained: str | None
    adapter: Choice
    num_frames: int
    program: str
    onnx: str

    def build(self) -> VideoCLIP:
        """Build the model."""
        from clipvid.model.factory import create_model

        model = create_model(
            self.backbone, self.pretrained, adapter=self.adapter, num_frames=self.num_frames, labels=LABELS
        )
        return model.eval()


def load(source: Source, runtime: str, threads: int) -> Callable[[np.ndarray], Any]:
    """Return the function from frames uint8 [B, T, S, S, 3] to probabilities."""
    if runtime == "onnx":
        return OnnxModel(source.onnx, threads)
    import torch

    torch.set_num_threads(threads)
    if runtime == "torch":
        program = torch.export.load(source.program).module()
        return lambda frames: program(torch.from_numpy(frames))
    model = source.build()

    @torch.no_grad()
    def eager(frames: np.ndarray) -> Any:
        return model(torch.from_numpy(frames).permute(0, 1, 4, 2, 3)).logits.softmax(dim=-1)

    return eager


def time_runtimes(source: Source, threads: int, frames: np.ndarray, repeats: int) -> dict[str, list[float]]:
    """Return the seconds of a pass in each runtime. Rounds iterate over the runtimes; the first is not counted."""
    functions = {runtime: load(source, runtime, threads) for runtime in RUNTIMES}
    seconds: dict[str, list[float]] = {runtime: [] for runtime in RUNTIMES}
    for turn in range(repeats + 1):
        for runtime, function in functions.items():
            start = time.perf_counter()
            function(frames)
            if turn:
                seconds[runtime].append(time.perf_counter() - start)
    return seconds


def memory_of_process(source: Source, runtime: str, threads: int, frames: np.ndarray) -> int:
    """Return the resident memory in bytes of this process, which has loaded and run a model.

    The peak would include that of the process that started this one.
    """
    function = load(source, runtime, threads)
    function(frames)
    memory: int = psutil.Process().memory_info().rss
    return memory
