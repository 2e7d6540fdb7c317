"""Fine-tune on labelled video: `accelerate launch scripts/finetune.py --config configs/demo.yaml`."""

from __future__ import annotations

from pathlib import Path

from clipvid.runs.config_files import check_output, parse_config
from clipvid.training.config import FinetuneConfig


def main(args: list[str] | None = None) -> None:
    """Run the verb."""
    config = parse_config(FinetuneConfig, args, "clipvid finetune")

    from clipvid.data.manifest import check_splits
    from clipvid.data.splits import load_split
    from clipvid.evaluation.summary import describe
    from clipvid.experiments.cross_validation import finetune_protocol
    from clipvid.training.build import build_accelerator
    from clipvid.training.finetune import check_hub, push_run
    from clipvid.training.session import end_trackers

    accelerator = build_accelerator(config.training, config.output_dir)
    output = Path(config.output_dir)
    check_output(output, config)
    if config.hub.push_to_hub:
        check_hub(config)
    with accelerator.main_process_first():
        train, val = load_split(config.data, "train"), load_split(config.data, "val")
    check_splits(train, val)
    figures = finetune_protocol(config, train, val, accelerator, output)
    accelerator.print(f"{describe(figures)} -> {output}/metrics.json")
    end_trackers(accelerator)
    if config.hub.push_to_hub and accelerator.is_main_process:
        print(push_run(config, output))
