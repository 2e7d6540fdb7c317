"""Train a CLIP from scratch on captioned stills: `clipvid pretrain-clip --config configs/pretrain/tiny_clip.yaml`."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from clipvid import InputError
from clipvid.runs.config_files import claim_output, config_record, parse_config
from clipvid.training.config import PretrainClipConfig


def main(args: list[str] | None = None) -> None:
    """Run the verb."""
    config = parse_config(PretrainClipConfig, args, "clipvid pretrain-clip")

    import torch

    from clipvid.backbone.state_dicts import load_strictly
    from clipvid.data.synthetic.stills import StillsDataset
    from clipvid.files import write_json
    from clipvid.model.factory import build_model
    from clipvid.runs.preemption import Preemption
    from clipvid.runs.record import recorded
    from clipvid.training.build import build_accelerator
    from clipvid.training.pretrain_clip import _report, build_clip_trainer, name_objects
    from clipvid.training.session import end_trackers, start_trackers

    accelerator = build_accelerator(config.training, config.output_dir)
    if accelerator.is_fsdp2:
        raise InputError("pretraining knows no FSDP: the small CLIP fits on any device; use DDP")
    output = Path(config.output_dir)
    if accelerator.is_main_process:
        claim_output(output, config)
    torch.manual_seed(config.seed)
    model = build_model(config.model)
    world, sizes = config.stills.world, (config.seed, model.image_size, model.text.tokenize)
    train = StillsDataset(world, config.stills.train, "stills", *sizes)
    val = StillsDataset(world, config.stills.val, "val_stills", *sizes)
    trainer = build_clip_trainer(config, model, train, accelerator, output)
    patience = timedelta(seconds=config.training.ddp_timeout)
    with Preemption(patience) as stop, recorded(output, accelerator, config_record(config), {}) as session:
        start_trackers(accelerator)
        try:
            state = trainer.run(stop, lambda epoch: _report(model, val, world, accelerator, epoch))
        finally:
            session |= trainer.throughput()
    load_strictly(model.trained_state(), trainer.result())
    if accelerator.is_main_process:
        if config.export_dir is not None:
            model.backbone.save(Path(config.export_dir), torch.float16)
        model.save_pretrained(output)
        write_json(output / "history.json", state.history)
        figures = name_objects(model, val, world)
        write_json(output / "metrics.json", {"object": figures, "config": config_record(config)})
    end_trackers(accelerator)
