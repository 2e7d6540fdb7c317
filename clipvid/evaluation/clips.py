"""Clips to look at: their frames with the answers of models, and pictures of them.

Shapes: T frames of a clip, H x W their pixels, V videos, K classes.
"""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from matplotlib.figure import Figure
from matplotlib.image import imread, imsave
from torch import Tensor

from clipvid import InputError
from clipvid.evaluation.loop import Predictions
from clipvid.evaluation.metrics import answered
from clipvid.evaluation.several_labels import THRESHOLD
from clipvid.files import printable, write_bytes

INK = "#1b2333"
_MAX_COLUMNS = 12  # frames of a clip in one row


@dataclass(frozen=True)
class Verdict:
    """A right or wrong answer as a word, a symbol and a color."""

    word: str
    symbol: str
    color: str


RIGHT, WRONG = Verdict("right", "✓", "#16794a"), Verdict("wrong", "✗", "#c2293d")


@dataclass(frozen=True)
class ClipStrip:
    """A clip and the answers of models.

    Attributes:
        frames: uint8 [T, 3, H, W].
        truth: its class, or its classes in words.
        predictions: labels with probabilities by model, best first.
        name: path of the video; empty for none.
        classes: its classes, if a video may have several; otherwise None.
    """

    frames: Tensor
    truth: str
    predictions: dict[str, list[tuple[str, float]]]
    name: str = ""
    classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        shape = list(self.frames.shape)
        if self.frames.dtype != torch.uint8 or len(shape) != 4 or shape[1] != 3 or 0 in shape:
            raise InputError(f"frames: expected uint8 [T, 3, H, W], got {self.frames.dtype} {shape}")

    @property
    def columns(self) -> int:
        """Return the number of frames in a row, at most 12; rows have equal lengths."""
        return math.ceil(len(self.frames) / math.ceil(len(self.frames) / _MAX_COLUMNS))

    @property
    def uri(self) -> str:
        """Return the strip of frames as a `data:` address."""
        return data_uri(strip_image(self), "png")

    def verdict(self, model: str) -> Verdict:
        """Return whether the best answer of a model is right. A clip without a class needs one below the threshold."""
        labels = self.predictions[model]
        if not labels:
            return WRONG
        best, share = labels[0]
        if self.classes is None:
            return RIGHT if best == self.truth else WRONG
        return RIGHT if best in self.classes or (not self.classes and share < THRESHOLD) else WRONG


def data_uri(image: bytes, kind: str) -> str:
    """Return an image as a `data:` address. kind: `png` or `svg+xml`."""
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def strip_image(strip: ClipStrip, scale: int = 1) -> bytes:
    """Return a PNG of the frames side by side, bicubically enlarged: T * W * scale by H * scale pixels."""
    frames, target = strip.frames.cpu(), io.BytesIO()
    if scale > 1:
        large = torch.nn.functional.interpolate(frames.float(), scale_factor=scale, mode="bicubic")
        frames = large.round().clamp(0, 255).to(torch.uint8)
    imsave(target, np.ascontiguousarray(rearrange(frames, "t c h w -> h (t w) c").numpy()), format="png")
    return target.getvalue()


def save_strips(path: Path, clips: list[ClipStrip]) -> None:
    """Write a PNG with a row per clip: its frames, an inch high, its class and each model's best label."""
    if not clips:
        raise InputError("no clips to draw: expected at least one ClipStrip")
    strips = max(len(clip.frames) * clip.frames.shape[3] / clip.frames.shape[2] for clip in clips)
    width, height = strips + 4.4, 1.12 * len(clips)  # inches, the words included
    figure, target = Figure(figsize=(width, height), dpi=100, facecolor="white"), io.BytesIO()
    for index, clip in enumerate(clips):
        bottom, image = height - 1.12 * index - 1.06, imread(io.BytesIO(strip_image(clip, 2)))
        axes = figure.add_axes((0.06 / width, bottom / height, strips / width, 1 / height), anchor="W")
        axes.imshow(image)
        axes.vlines(np.arange(1, len(clip.frames)) * 2 * clip.frames.shape[3] - 0.5, *axes.get_ylim(), colors="white")
        axes.set_axis_off()
        lines = [(clip.truth, INK, "bold")]
        for model, labels in clip.predictions.items():
            for best, _ in labels[:1]:
                verdict = clip.verdict(model)
                lines.append((f"{verdict.symbol} {best}  ({model})", verdict.color, "normal"))
        for line, (words, color, weight) in enumerate(lines):
            at = (strips + 0.2) / width, (bottom + 1 - (line + 0.5) / len(lines)) / height
            figure.text(*at, printable(words), color=color, weight=weight, size=9, va="center", parse_math=False)
    figure.savefig(target, format="png")
    write_bytes(path, target.getvalue())


def hardest(predictions: Predictions, count: int) -> list[int]:
    """Return indices of the readable videos whose class gets the least probability, the worst first.

    Several labels have the geometric mean of the probabilities that each class is there or not, as it should.
    """
    scores, labels = predictions.scores, predictions.labels
    readable = answered(scores)
    if labels.ndim == 1:
        truth = scores.gather(1, labels[:, None])[:, 0]
    else:
        truth = torch.where(labels, scores, 1 - scores).clamp(min=1e-12).log().mean(dim=1).exp()
    truth = truth.masked_fill(~readable, 2.0)
    return predictions.indices[truth.argsort(stable=True)][: min(count, int(readable.sum()))].tolist()


def best_answers(predictions: Predictions, names: list[str], index: int, count: int = 3) -> list[tuple[str, float]]:
    """Return the best labels for a video, with probabilities. Return none for a video that has no scores."""
    places = (predictions.indices == index).nonzero()
    if not len(places):
        return []
    row = predictions.scores[int(places[0])]
    best = row.topk(min(count, len(names)))
    return [(names[place], float(share)) for share, place in zip(best.values, best.indices, strict=True)]
