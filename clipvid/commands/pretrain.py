"""Training on video without labels: `accelerate launch scripts/pretrain.py --config configs/pretrain/video.yaml`.

The result is a model folder for `clipvid finetune --model.init_from FOLDER`.
"""

from __future__ import annotations

from clipvid.runs.config_files import parse_config
from clipvid.training.pretrain_config import PretrainConfig


def main(args: list[str] | None = None) -> None:
    """Run the verb."""
    config = parse_config(PretrainConfig, args, "clipvid pretrain")

    from clipvid.evaluation.summary import describe
    from clipvid.training.build import build_accelerator
    from clipvid.training.pretrain import pretrain
    from clipvid.training.session import end_trackers

    accelerator = build_accelerator(config.training, config.output_dir)
    figures = pretrain(config, accelerator)
    accelerator.print(f"{describe(figures)} -> {config.output_dir}/metrics.json")
    end_trackers(accelerator)
