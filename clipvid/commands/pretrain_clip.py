"""Training of a CLIP on captioned stills: `clipvid pretrain-clip --config configs/pretrain/tiny_clip.yaml`."""

from __future__ import annotations

from clipvid.runs.config_files import parse_config
from clipvid.training.pretrain_config import PretrainClipConfig


def main(args: list[str] | None = None) -> None:
    """Run the verb."""
    config = parse_config(PretrainClipConfig, args, "clipvid pretrain-clip")

    from clipvid.training.build import build_accelerator
    from clipvid.training.pretrain_clip import pretrain_clip
    from clipvid.training.session import end_trackers

    accelerator = build_accelerator(config.training, config.output_dir)
    pretrain_clip(config, accelerator)
    end_trackers(accelerator)
