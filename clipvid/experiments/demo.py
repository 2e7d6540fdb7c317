"""The main job from end to end on the synthetic world: zero-shot, fine-tuning, evaluation, report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from clipvid import RunError
from clipvid.data.manifest import Manifest
from clipvid.data.splits import load_split
from clipvid.evaluation.clips import ClipStrip, save_strips
from clipvid.evaluation.loop import Predictions
from clipvid.evaluation.report import Page, write_page
from clipvid.evaluation.report_sections import (
    Confusion,
    Curve,
    ReportRow,
    clips_section,
    confusions_section,
    curves_section,
    details_section,
    pairs_section,
    results_section,
    row_colors,
)
from clipvid.evaluation.results import PREDICTIONS, read_conditions
from clipvid.experiments.config import DemoConfig, EvaluateConfig
from clipvid.experiments.report_clips import read_clips
from clipvid.experiments.run import evaluate_protocol
from clipvid.files import write_json
from clipvid.hub.loading import load_model
from clipvid.runs.config_files import parse_config
from clipvid.training.config import FinetuneConfig
from clipvid.training.session import finished

INTRODUCTION = (
    "A small CLIP that knows objects but has never seen a video is shown clips of moving objects. Every motion has a "
    "partner that plays it backwards, so whoever looks at the frames without their order can only guess. "
    "Mean pooling fine-tunes the whole image tower; ILA trains adapters between its frozen layers. The table says who "
    "can tell a motion from its reverse."
)


def run_demo(demo: DemoConfig, accelerator: Accelerator) -> list[ReportRow]:
    """Fine-tune the baseline and the adapter, evaluate the adapter's model, and write the report.

    The evaluation measures zero-shot CLIP, reversed clips and shuffled clips too. What is finished is reused.

    Returns:
        The rows of the table.
    """
    started = time.monotonic()
    output = Path(demo.output_dir)
    adapter, baseline = (
        parse_config(FinetuneConfig, ["--config", path], "clipvid demo") for path in (demo.adapter, demo.baseline)
    )
    manifest = load_split(adapter.data, "val")
    names = {"mean_pooling": "mean pooling, fine-tuned", "ila": "ILA, fine-tuned"}
    _finetune(names["mean_pooling"], demo.baseline)
    _finetune(names["ila"], demo.adapter)
    pooled = _finished(Path(baseline.output_dir))
    evaluation = _evaluation(adapter)
    figures = evaluate_protocol(evaluation, accelerator)["groups"]["all"]
    rows = [
        ReportRow("zero-shot CLIP", figures["zero_shot"]),
        ReportRow(names["mean_pooling"], pooled[1]),
        ReportRow(names["ila"], figures),
        *(ReportRow(f"ILA on {order} clips", figures["controls"][order]) for order in evaluation.controls),
    ]
    scores = read_conditions(Path(evaluation.output_dir) / PREDICTIONS)
    shown = [scores["zero-shot"], pooled[0], scores["forward"]]
    predictions = {row.name: best for row, best in zip(rows[: len(shown)], shown, strict=True)}
    clips = _clips(predictions, adapter, manifest, accelerator)
    _write(output, rows, clips, demo, manifest, time.monotonic() - started)
    return rows


def _finetune(name: str, path: str) -> None:
    """Fine-tune by the command that a user would type. A finished run is reused."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes=1", "--num_machines=1"]
    command += ["--mixed_precision=no", "--dynamo_backend=no", f"--num_cpu_threads_per_process={os.cpu_count()}"]
    command += ["-m", "clipvid", "finetune", "--config", path]
    print(f"\n{name}: accelerate launch -m clipvid finetune --config {path}", flush=True)
    subprocess.run(command, check=True)


def _finished(folder: Path) -> tuple[Predictions, dict[str, Any]]:
    done = finished(folder)
    if done is None:
        raise RunError(f"{folder} has no metrics.json after its run")
    return done


def _evaluation(config: FinetuneConfig) -> EvaluateConfig:
    """Return the evaluation of a fine-tuned model. Its folder is in the run's, so that it is never another model's."""
    return EvaluateConfig(
        name="ILA",
        model=config.output_dir,
        num_frames=config.model.num_frames,
        data=config.data,
        controls=["reversed", "shuffled"],
        hardest_clips=0,
        output_dir=str(Path(config.output_dir) / "evaluation"),
    )


def _clips(
    predictions: dict[str, Predictions], config: FinetuneConfig, manifest: Manifest, accelerator: Accelerator
) -> list[ClipStrip]:
    """Return a held-out clip of each motion, with the objects in turn, and the best answers of each model."""
    objects = list(dict.fromkeys(info.attributes["object"] for info in manifest.classes))
    motions = list(dict.fromkeys(info.attributes["motion"] for info in manifest.classes))
    chosen: dict[str, int] = {}
    for index, sample in enumerate(manifest.samples):
        attributes = manifest.classes[sample.label].attributes
        motion, turn = attributes["motion"], motions.index(attributes["motion"])
        if attributes["object"] == objects[turn % len(objects)]:
            chosen.setdefault(motion, index)
    picks = [chosen[motion] for motion in motions]
    model = load_model("tiny", None, config.model.num_frames, manifest.class_names, config.templates)
    return read_clips(config.data, model, manifest, picks, predictions, accelerator)


def _write(
    output: Path, rows: list[ReportRow], clips: list[ClipStrip], demo: DemoConfig, manifest: Manifest, seconds: float
) -> None:
    """Write report.html, clips.png and metrics.json."""
    curves = []
    for row, path in zip(rows[1:3], (demo.baseline, demo.adapter), strict=True):
        folder = parse_config(FinetuneConfig, ["--config", path], "clipvid demo").output_dir
        curves.append(Curve(row.name, _read_history(Path(folder))))
    confusions = [Confusion(row.name, row.figures["confusion"], manifest.class_names) for row in rows[:3]]
    colors = row_colors(rows, curves)
    packages = ("clipvid", "torch", "open_clip_torch", "accelerate")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    details = {
        "commands": f"accelerate launch -m clipvid finetune --config {demo.baseline} (and {demo.adapter})",
        "held-out clips": str(len(manifest)),
        "versions": ", ".join(f"{name} {version(name)}" for name in packages),
        "hardware": device,
        "seconds for this call": f"{seconds:.0f}",
    }
    sections = [
        results_section(rows, colors),
        pairs_section(rows, colors),
        clips_section(clips),
        curves_section(curves, colors),
        confusions_section(confusions),
        details_section(details),
    ]
    write_page(output / "report.html", Page("Can CLIP learn motion?", [INTRODUCTION], sections))
    save_strips(output / "clips.png", clips)
    write_json(output / "metrics.json", {row.name: row.figures for row in rows})


def _read_history(folder: Path) -> list[dict[str, Any]]:
    history: list[dict[str, Any]] = json.loads((folder / "history.json").read_text())
    return history
