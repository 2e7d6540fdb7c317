"""Report of an evaluation under a protocol."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from clipvid import InputError
from clipvid.data.splits import ClipShape
from clipvid.evaluation.clips import ClipStrip, hardest
from clipvid.evaluation.conditions import FORWARD, ZERO_SHOT
from clipvid.evaluation.evaluation_report import Evaluation, evaluation_page
from clipvid.evaluation.report import Block, Folded, Paragraph, write_page
from clipvid.evaluation.report_sections import ZERO_SHOT_NAME
from clipvid.evaluation.results import Group
from clipvid.experiments.config import EvaluateConfig
from clipvid.experiments.report_clips import read_clips
from clipvid.inference.explain.explanation import explain_clip
from clipvid.inference.explain.page import where_blocks
from clipvid.model.video_clip import VideoCLIP


def write_report(
    config: EvaluateConfig,
    title: str,
    model: ClipShape,
    metrics: dict[str, Any],
    groups: Sequence[Group],
    accelerator: Accelerator,
) -> None:
    """Write `report.html` of an evaluation to `config.output_dir`.

    Args:
        config: Config of the evaluation.
        title: Name of the model.
        model: The model, for the shape of its clips.
        metrics: Content of metrics.json.
        groups: Scores of the groups. The clips shown are those of the last one.
        accelerator: Accelerator of the run.
    """
    last = groups[-1]
    clips = _hardest_clips(config, title, model, last, accelerator)
    evaluation = Evaluation(
        title,
        metrics["groups"],
        last.manifest.class_names,
        metrics.get("few_shot") or metrics.get("base_to_novel") or {},
        last.unreadable(),
        clips,
        _explanations(config, title, model, clips),
        details={
            "model": title,
            "protocol": json.dumps(config.protocol or config.data.protocol),
            "videos": ", ".join(f"{len(group.manifest)} ({group.name})" for group in groups),
            "config": json.dumps(metrics["config"]),
        },
    )
    write_page(Path(config.output_dir) / "report.html", evaluation_page(evaluation))


def _hardest_clips(
    config: EvaluateConfig, title: str, model: ClipShape, group: Group, accelerator: Accelerator
) -> list[ClipStrip]:
    """Return the clips of a group with the worst predictions, and the best answers of model and zero-shot CLIP."""
    chosen = hardest(group.predictions(FORWARD, config.average), config.hardest_clips)
    shown = {title: FORWARD}
    shown = ({ZERO_SHOT_NAME: ZERO_SHOT} if ZERO_SHOT in group.conditions else {}) | shown
    predictions = {name: group.predictions(condition, config.average) for name, condition in shown.items()}
    return read_clips(config.data, model, group.manifest, chosen, predictions, accelerator)


def _explanations(config: EvaluateConfig, title: str, model: ClipShape, clips: Sequence[ClipStrip]) -> list[Block]:
    """Return why the model gives its answer for each clip, against the true class where the answer is wrong.

    Nothing is returned for weight-space ensembles, whose model in memory has other weights, and for towers whose
    attention cannot be read.
    """
    if not isinstance(model, VideoCLIP) or config.alpha != 1 or config.sweep:
        return []
    blocks: list[Block] = []
    for clip in clips:
        answer = clip.predictions[title][0][0]
        against = clip.truth if clip.classes is None and answer != clip.truth else None
        try:
            reasons = explain_clip(model, clip.frames, answer, against, time=False, name=clip.name)
        except InputError:
            return []
        sentence = Paragraph(reasons.sentence)
        blocks.append(Folded(f"{clip.truth}, answered {answer}", [sentence, *where_blocks(reasons)[1:]]))
    return blocks
