"""Fine-tuning on labeled video: `accelerate launch scripts/finetune.py --config configs/demo.yaml`."""

from __future__ import annotations

from clipvid.runs.config_files import parse_config, set_options
from clipvid.training.config import FinetuneConfig


def main(args: list[str] | None = None) -> None:
    """Run the verb."""
    config = parse_config(FinetuneConfig, args, "clipvid finetune")
    chosen_by_user = set_options(FinetuneConfig, args, "clipvid finetune")

    from clipvid.experiments.chosen_settings import with_chosen_settings
    from clipvid.experiments.python_api import run_finetuning

    config, settings = with_chosen_settings(config, chosen_by_user)
    run_finetuning(config, settings=settings)
