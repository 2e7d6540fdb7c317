"""Fine-tuning on labeled video: `accelerate launch scripts/finetune.py --config configs/demo.yaml`."""

from __future__ import annotations

from clipvid.runs.config_files import parse_config
from clipvid.training.config import FinetuneConfig


def main(args: list[str] | None = None) -> None:
    """Run the verb."""
    config = parse_config(FinetuneConfig, args, "clipvid finetune")

    from clipvid.experiments.python_api import run_finetuning

    run_finetuning(config)
