"""Learn motion from video without labels: `accelerate launch scripts/pretrain.py --config configs/pretrain/video.yaml`.

What comes out is a model folder that `clipvid finetune --model.init_from FOLDER` starts from.
"""

from __future__ import annotations

from clipvid.evaluation.summary import describe
from clipvid.runs.config_files import parse_config
from clipvid.training.build import build_accelerator
from clipvid.training.pretrain import PretrainConfig, pretrain
from clipvid.training.session import end_trackers


def main(args: list[str] | None = None) -> None:
    """The verb."""
    config = parse_config(PretrainConfig, args, "clipvid pretrain")
    accelerator = build_accelerator(config.training, config.output_dir)
    figures = pretrain(config, accelerator)
    accelerator.print(f"{describe(figures)} -> {config.output_dir}/metrics.json")
    end_trackers(accelerator)
