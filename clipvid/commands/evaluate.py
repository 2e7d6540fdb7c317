"""Measure a model on labelled video: `clipvid evaluate --model outputs/demo/ila --data.root ...`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator

from clipvid.commands.finetune import write_results
from clipvid.config import DataConfig, claim_output, eval_loader, load_split, parse_config
from clipvid.data.loader import FrameOrder
from clipvid.data.manifest import Manifest
from clipvid.engine import Predictions
from clipvid.evaluation import describe, evaluate
from clipvid.hub import load_model
from clipvid.model import VideoCLIP


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation of one model on one list of videos.

    model: a model folder, a repository on the Hub, or the name of a plain CLIP (`tiny`, `ViT-B-16` with `pretrained`).
    templates: for the class names; None keeps those of a saved model (`single` for a plain CLIP).
    frame_order: `forward`, or the controls `reversed`, `shuffled`, `single` (one frame repeated).
    """

    model: str = "tiny"
    pretrained: str | None = None
    num_frames: int = 8
    templates: str | list[str] | None = None
    data: DataConfig = field(default_factory=DataConfig)
    frame_order: FrameOrder = "forward"
    batch_size: int = 16
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    output_dir: str = "outputs/evaluate"


def main(args: list[str] | None = None) -> None:
    """The verb."""
    config = parse_config(EvaluateConfig, args, "clipvid evaluate")
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    with accelerator.main_process_first():
        manifest = load_split(config.data, "val")
    if accelerator.is_main_process:
        claim_output(Path(config.output_dir), config)
    model = load_model(config.model, config.pretrained, config.num_frames, manifest.class_names, config.templates)
    predictions, figures = run_evaluation(
        accelerator, model, config.data, manifest, config.batch_size, config.frame_order, Path(config.output_dir)
    )
    if accelerator.is_main_process:
        write_results(Path(config.output_dir), predictions, figures, config, accelerator)
    accelerator.print(f"{describe(figures)} -> {config.output_dir}/metrics.json")


def run_evaluation(
    accelerator: Accelerator,
    model: VideoCLIP,
    data: DataConfig,
    manifest: Manifest,
    batch_size: int,
    frame_order: FrameOrder = "forward",
    output_dir: Path | None = None,
) -> tuple[Predictions, dict[str, Any]]:
    """Predictions and figures of a model on a manifest, with the frames of each clip in the given order.

    Unreadable videos are written to `output_dir`/bad_videos.jsonl where there is one.
    """
    model.to(accelerator.device)
    loader = eval_loader(data, model, manifest, accelerator, batch_size, frame_order, output_dir)
    return evaluate(accelerator, model, loader, manifest.classes)
