"""`Explanation`: why a model gives an answer for a clip, and `explain`, which makes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipvid import InputError
from clipvid.adapters.marks import HeatMap
from clipvid.inference.clips import ClipReader
from clipvid.inference.explain.methods import METHODS
from clipvid.inference.explain.page import save_explanations
from clipvid.inference.explain.reasons import AdapterMarks, Reasons
from clipvid.inference.explain.recording import Record, record
from clipvid.inference.explain.sentence import describe
from clipvid.inference.explain.target import Target, find_label
from clipvid.inference.explain.time import time_effects
from clipvid.inference.videos import open_source
from clipvid.model.video_clip import VideoCLIP
from clipvid.registry import Choice, config_to_choice


class Explanation(Reasons):
    """Reasons of an answer, with a description in words and files to look at."""

    @property
    def sentence(self) -> str:
        """The explanation in one or two sentences."""
        return describe(self)

    def save(self, folder: str | Path) -> None:
        """Write `report.html`, and a PNG strip, an MP4 with overlays and the numbers as JSON, to `folder`."""
        save_explanations(Path(folder), [self])


def explain(
    model: VideoCLIP,
    source: Any,
    label: str | int | None = None,
    against: str | int | None = None,
    method: Choice = "attention",
    time: bool = True,
    exact: bool = False,
    name: str | None = None,
) -> Explanation:
    """Explain the answer of a model for a video: where, when and how.

    The default method runs two forward passes and one backward pass. `time` adds about 6 T forward passes.

    Args:
        model: Model in evaluation mode, with labels.
        source: A video, see `clipvid.Predictor`.
        label: Class to explain, by name or index. By default the answer, the class with the highest probability.
        against: Class to compare with. By default the mean of all other classes, or none for a model with several
            labels per video.
        method: Name of `METHODS`, such as `attention` or `grad_cam`, or a mapping with `name` and options.
        time: Also measure the importance of frames and order.
        exact: Measure the importance of frames by exact Shapley values, with 2^T forward passes, for up to 8 frames.
        name: Name of the video in pages and file names. By default that of the source.

    Raises:
        InputError: The model has no labels or is in training mode, or a class, method or object is unknown.
        VideoError: The video cannot be read.
    """
    if not model.labels:
        raise InputError("the model has no labels; set them (set_labels([...]), --labels)")
    if model.training:
        raise InputError("the model is in training mode, where dropout changes its answers; call model.eval() first")
    with open_source(source) as video:
        reader = ClipReader.create(model.num_frames, model.image_size, model.preprocessing)
        indices = reader.indices(video)
        frames, moments = reader.read_at(video, indices)[0], video.frame_times(range(len(video)))
        times = None if moments is None else [moments[index] for index in indices.flatten().tolist()]
        title = str(video.name) if name is None else name
    return explain_clip(model, frames, label, against, method, time, exact, title, times)


def explain_clip(
    model: VideoCLIP,
    frames: Tensor,
    label: str | int | None = None,
    against: str | int | None = None,
    method: Choice = "attention",
    time: bool = True,
    exact: bool = False,
    name: str = "",
    times: list[float] | None = None,
) -> Explanation:
    """Explain the answer of a model for a clip in memory, see `explain`.

    Args:
        model: Model in evaluation mode, with labels.
        frames: uint8 [T, 3, S, S], as the model sees them.
        label: See `explain`.
        against: See `explain`.
        method: See `explain`.
        time: See `explain`.
        exact: See `explain`.
        name: Name of the video.
        times: T times of the frames in seconds, or None if unknown.
    """
    chosen = METHODS.resolve(method)
    classes = [
        None if each is None else find_label(each, model.labels, option)
        for each, option in ((label, "label"), (against, "against"))
    ]
    clip = model.normalize(frames[None].to(model.pixel_mean.device))
    with torch.no_grad(), record(model) as seen:
        output = model(clip, trace=True, normalized=True)
    probabilities = model.probabilities(output.logits[0]).cpu()
    chosen_label = int(probabilities.argmax()) if classes[0] is None else classes[0]
    target = Target(chosen_label, classes[1], is_alone=bool(model.config.multi_label) and against is None)
    if target.label == target.against:
        raise InputError(f"against={against!r} is the explained class itself; expected another class")
    relevance = chosen.config.relevance(model, clip, target).cpu()
    return Explanation(
        name,
        frames.cpu(),
        times,
        list(model.labels),
        probabilities,
        target,
        config_to_choice(*chosen),
        relevance / relevance.sum().clamp(min=torch.finfo(relevance.dtype).tiny),
        time_effects(model, clip, target, exact) if time else None,
        draw_adapters(model, seen),
    )


def draw_adapters(model: VideoCLIP, seen: Record) -> list[AdapterMarks]:
    """Return the marks of all adapters in a recorded pass of one clip with `trace=True`."""
    grid = model.encoder.tower.grid
    drawn = []
    for index, block in enumerate(seen.blocks):
        for name, each in block.adapters.items():
            trace = {key: value.cpu() for key, value in (each.output.trace or {}).items()}
            marks = each.adapter.draw_trace(trace, grid) if each.output.trace is not None else []
            if not marks and each.output.update is not None:
                patches = each.output.update[0, :, -grid[0] * grid[1] :]
                note = "Size of the change that the adapter makes to each patch."
                marks = [HeatMap("update", note, patches.detach().float().norm(dim=-1).unflatten(-1, grid).cpu())]
            if marks:
                drawn.append(AdapterMarks(name, index, marks))
    return drawn
