"""Report of an evaluation under a protocol."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from clipvid.data.splits import ClipShape
from clipvid.evaluation.clips import ClipStrip, hardest
from clipvid.evaluation.conditions import FORWARD, ZERO_SHOT
from clipvid.evaluation.evaluation_report import Evaluation, evaluation_page
from clipvid.evaluation.report import write_page
from clipvid.evaluation.report_sections import ZERO_SHOT_NAME
from clipvid.evaluation.results import Group
from clipvid.experiments.config import EvaluateConfig
from clipvid.experiments.report_clips import read_clips


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
    evaluation = Evaluation(
        title,
        metrics["groups"],
        last.manifest.class_names,
        metrics.get("few_shot") or metrics.get("base_to_novel") or {},
        last.unreadable(),
        _hardest_clips(config, title, model, last, accelerator),
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
