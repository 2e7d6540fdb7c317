"""The main job from end to end on the synthetic world: zero-shot, fine-tuning, evaluation, report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from clipvid import RunError
from clipvid.data.loader import FrameOrder
from clipvid.data.manifest import Manifest
from clipvid.data.splits import eval_loader
from clipvid.evaluation.loop import Predictions
from clipvid.evaluation.report import ClipStrip, Curve, Row, save_strips, write_report
from clipvid.evaluation.summary import evaluate
from clipvid.experiments.config import DemoConfig
from clipvid.files import write_json
from clipvid.hub.loading import load_model
from clipvid.runs.config_files import parse_config
from clipvid.training.config import FinetuneConfig
from clipvid.training.session import finished, write_results

INTRODUCTION = (
    "A small CLIP that knows objects but has never seen a video is shown clips of moving objects. Every motion has a "
    "partner that plays it backwards, so whoever looks at the frames without their order can only guess. "
    "Mean pooling fine-tunes the whole image tower; ILA trains adapters between its frozen layers. The table says who "
    "can tell a motion from its reverse."
)


@dataclass(frozen=True)
class Outcome:
    """One row: its name, predictions and figures."""

    name: str
    predictions: Predictions
    figures: dict[str, Any]


def _finetune(name: str, path: str) -> Outcome:
    """Fine-tune by the command that a user would type; a finished run answers at once."""
    config = parse_config(FinetuneConfig, ["--config", path], "clipvid demo")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes=1", "--num_machines=1"]
    command += ["--mixed_precision=no", "--dynamo_backend=no", f"--num_cpu_threads_per_process={os.cpu_count()}"]
    command += ["-m", "clipvid", "finetune", "--config", path]
    print(f"\n{name}: accelerate launch -m clipvid finetune --config {path}", flush=True)
    subprocess.run(command, check=True)
    return Outcome(name, *_finished(Path(config.output_dir)))


def _finished(folder: Path) -> tuple[Predictions, dict[str, Any]]:
    done = finished(folder)
    if done is None:
        raise RunError(f"{folder} has no metrics.json after its run")
    return done


def _measure(
    name: str,
    folder: Path,
    model_name: str,
    config: FinetuneConfig,
    manifest: Manifest,
    accelerator: Accelerator,
    order: FrameOrder = "forward",
) -> Outcome:
    """Evaluate, or take up what an earlier run of the demo measured with the same weights."""
    weights = Path(model_name) / "model.safetensors"
    done = finished(folder)
    if done is not None and (
        not weights.is_file() or weights.stat().st_mtime < (folder / "metrics.json").stat().st_mtime
    ):
        return Outcome(name, *done)
    print(f"\n{name}: {len(manifest)} held-out clips", flush=True)
    model = load_model(model_name, None, config.model.num_frames, manifest.class_names, config.templates)
    loader = eval_loader(config.data, model.to(accelerator.device), manifest, accelerator, 16, order)
    predictions, figures = evaluate(accelerator, model, loader, manifest.classes)
    write_results(folder, predictions, figures, config, accelerator)
    return Outcome(name, *_finished(folder))


def _clips(
    outcomes: list[Outcome], config: FinetuneConfig, manifest: Manifest, accelerator: Accelerator
) -> list[ClipStrip]:
    """One held-out clip per motion, the objects taking turns, with what each model said of it."""
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
    loader = eval_loader(config.data, model, manifest.subset(picks), accelerator, len(picks))
    frames = next(iter(loader))["frames"][:, 0]
    names = manifest.class_names
    strips = []
    for clip, index in zip(frames, picks, strict=True):
        said = {}
        for outcome in outcomes:
            best = outcome.predictions.scores[index].topk(3)
            said[outcome.name] = [(names[i], float(p)) for p, i in zip(best.values, best.indices, strict=True)]
        strips.append(ClipStrip(clip, names[manifest.samples[index].label], said))
    return strips


def _write(
    output: Path, rows: list[Row], clips: list[ClipStrip], demo: DemoConfig, manifest: Manifest, seconds: float
) -> None:
    curves = []
    for row, path in zip(rows[1:3], (demo.baseline, demo.adapter), strict=True):
        folder = parse_config(FinetuneConfig, ["--config", path], "clipvid demo").output_dir
        curves.append(Curve(row.name, _read_history(Path(folder))))
    confusions = {row.name: (row.figures["confusion"], manifest.class_names) for row in rows[:3]}
    packages = ("clipvid", "torch", "open_clip_torch", "accelerate")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    details = {
        "commands": f"accelerate launch -m clipvid finetune --config {demo.baseline} (and {demo.adapter})",
        "held-out clips": str(len(manifest)),
        "versions": ", ".join(f"{name} {version(name)}" for name in packages),
        "hardware": device,
        "seconds for this call": f"{seconds:.0f}",
    }
    write_report(
        output / "report.html", "Can CLIP learn motion?", INTRODUCTION, rows, curves, confusions, clips, details
    )
    save_strips(output / "clips.png", clips)
    write_json(output / "metrics.json", {row.name: row.figures for row in rows})


def _read_history(folder: Path) -> list[dict[str, Any]]:
    history: list[dict[str, Any]] = json.loads((folder / "history.json").read_text())
    return history
