"""Clips for reports: the frames that a model sees of some videos, with the answers of several models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from accelerate import Accelerator

from clipvid.data.config import DataConfig
from clipvid.data.lists.samples import Sample
from clipvid.data.manifest import Manifest
from clipvid.data.splits import ClipShape, eval_loader
from clipvid.evaluation.clips import ClipStrip, best_answers
from clipvid.evaluation.loop import Predictions


def read_clips(
    data: DataConfig,
    shape: ClipShape,
    manifest: Manifest,
    indices: Sequence[int],
    predictions: dict[str, Predictions],
    accelerator: Accelerator,
) -> list[ClipStrip]:
    """Read the first view of some videos, on this process alone.

    Args:
        data: how clips are taken.
        shape: frames and pixels of a clip.
        manifest: all videos.
        indices: of the videos to read; none for no clips.
        predictions: answers for `manifest` by name of model.
        accelerator: that of the run.
    """
    if not indices:
        return []
    shown = manifest.subset(indices)
    loader = eval_loader(replace(data, num_workers=0), shape, shown, accelerator, len(shown))
    frames = next(iter(loader))["frames"][:, 0]
    names = manifest.class_names
    return [
        ClipStrip(
            clip,
            _truth(manifest, sample),
            {name: best_answers(scores, names, index) for name, scores in predictions.items()},
            sample.path,
            None if sample.labels is None else tuple(names[label] for label in sample.labels),
        )
        for clip, sample, index in zip(frames, shown.samples, indices, strict=True)
    ]


def _truth(manifest: Manifest, sample: Sample) -> str:
    if sample.labels is None:
        return manifest.class_names[sample.label]
    return ", ".join(manifest.class_names[label] for label in sample.labels) or "no label"
