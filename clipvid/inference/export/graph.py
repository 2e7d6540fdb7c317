"""Part of a model that is exported: from pixels to probabilities.

Shapes: B clips, T frames, S image side, K classes, E embedding.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from clipvid import InputError
from clipvid.model.video_clip import VideoCLIP

Text = Literal["classes", "input"]
# Shorter clips have a single pair of frames, or none, which graphs for any number cannot express.
FRAME_RANGE = (4, 512)


class _LogitScale(nn.Module):
    """Scale and bias of the logits, in place of the text tower that the graph does not need."""

    logit_scale: Tensor

    def __init__(self, logit_scale: Tensor, logit_bias: Tensor | float) -> None:
        super().__init__()
        self.register_buffer("logit_scale", logit_scale)
        self.logit_bias = logit_bias


class ExportedGraph(nn.Module):
    """Model as one function of frames uint8 [B, T, S, S, 3], and of text features [K, E] if these are an input.

    Args:
        model: A model without gradients in evaluation mode.
        classes: Text features [K, E] to store, or None if they are an input or the head reads none.
    """

    classes: Tensor | None

    def __init__(self, model: VideoCLIP, classes: Tensor | None) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("classes", classes)

    def forward(self, frames: Tensor, text: Tensor | None = None) -> Tensor:
        """Return probabilities float32 [B, K]."""
        pixels = self.model.normalize(frames.permute(0, 1, 4, 2, 3))
        classes = self.classes if text is None else text.to(pixels.dtype)
        encoded = self.model.encoder(pixels)
        logits = self.model.classify(encoded, self.model.pooling(encoded.frame_features), classes)
        return self.model.probabilities(logits)


def check_exportable(model: VideoCLIP, text: Text, any_frames: bool) -> None:
    """Check that a model can be exported in this form.

    Raises:
        InputError: It has no classes, has no text to pass as an input, or an adapter prevents it.
    """
    if text == "input" and not model.head.needs_text:
        raise InputError(f"--text input: a {model.config.parts.head.name} head reads no text; use --text classes")
    if text == "classes" and not model.labels:
        raise InputError("the model has no labels to store; pass --labels or --labels_file, or use --text input")
    for adapter in model.encoder.adapters():
        adapter.check_export(any_frames)


def frame_range(model: VideoCLIP, any_frames: bool) -> tuple[int, int]:
    """Return the smallest and largest number of frames of the exported graph.

    Raises:
        InputError: The model has too few positions for a variable number.
    """
    if not any_frames:
        return model.num_frames, model.num_frames
    least, most = FRAME_RANGE
    most = min(most, model.pooling.max_frames or most)
    if not least <= model.num_frames <= most:
        raise InputError(
            f"--frames free: graphs take {least} to {most} frames, and the model has {model.num_frames}; use --frames "
            "fixed"
        )
    return least, most


@torch.no_grad()
def build_graph(model: VideoCLIP, text: Text, half: bool) -> ExportedGraph:
    """Build the graph of a copy of a model, with LoRA merged.

    Args:
        model: The model, which is not changed.
        text: See `export_model`.
        half: Convert the weights to float16.
    """
    copied = copy.deepcopy(model).cpu().float().eval()
    if hasattr(copied, "peft_config"):
        copied.merge_lora()
    copied.refresh_labels()
    if half:
        copied = copied.half()
    stored = text == "classes" and copied.head.needs_text
    graph: Any = copied.requires_grad_(False)
    graph.text = _LogitScale(graph.text.logit_scale, graph.text.logit_bias)
    return ExportedGraph(graph, copied.label_features if stored else None).eval()
