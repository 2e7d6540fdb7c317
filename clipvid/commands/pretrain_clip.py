"""Train a CLIP from scratch on captioned stills: `clipvid pretrain-clip --config configs/pretrain/tiny_clip.yaml`."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from clipvid.builder import build_model
from clipvid.config import TrainingConfig, build_accelerator, claim_output, config_record, parse_config
from clipvid.data.loader import TrainBatches, build_loader
from clipvid.data.stills import StillsDataset
from clipvid.data.synthetic import WorldConfig
from clipvid.engine import Trainer
from clipvid.evaluation import write_json
from clipvid.metrics import proportion
from clipvid.model import ModelConfig, VideoCLIP
from clipvid.objectives import ImageTextContrast
from clipvid.optim import OptimConfig, build_optimizer, build_scheduler
from clipvid.preemption import Preemption
from clipvid.record import recorded
from clipvid.state_dicts import load_strictly


@dataclass(frozen=True)
class StillsConfig:
    """Captioned stills: how many to train on, how many to measure on."""

    world: WorldConfig = field(default_factory=WorldConfig)
    train: int = 20000
    val: int = 1000


@dataclass(frozen=True)
class PretrainClipConfig:
    """Contrastive image-text training on captioned stills of the synthetic world.

    export_dir: where the finished CLIP goes, in half precision, as a folder for `local-dir:`.
    """

    output_dir: str = "outputs/pretrain"
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    stills: StillsConfig = field(default_factory=StillsConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    export_dir: str | None = None


def main(args: list[str] | None = None) -> None:
    """The verb."""
    config = parse_config(PretrainClipConfig, args, "clipvid pretrain-clip")
    accelerator = build_accelerator(config.training, config.output_dir)
    if accelerator.is_fsdp2:
        raise ValueError("pretraining knows no FSDP: the small CLIP fits on any device; use DDP")
    output = Path(config.output_dir)
    if accelerator.is_main_process:
        claim_output(output, config)
    torch.manual_seed(config.seed)
    model = build_model(config.model)
    world, sizes = config.stills.world, (config.seed, model.image_size, model.text.tokenize)
    train = StillsDataset(world, config.stills.train, "stills", *sizes)
    val = StillsDataset(world, config.stills.val, "val_stills", *sizes)
    trainer = build_clip_trainer(config, model, train, accelerator, output)
    trainer.on_epoch_end = lambda epoch: _report(model, val, world, accelerator, epoch)
    if accelerator.log_with:
        accelerator.init_trackers("logs")
    patience = timedelta(seconds=config.training.ddp_timeout)
    with Preemption(patience) as trainer.stop, recorded(output, accelerator, config_record(config), {}) as session:
        try:
            state = trainer.run()
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
    accelerator.end_training()


def build_clip_trainer(
    config: PretrainClipConfig, model: VideoCLIP, train: StillsDataset, accelerator: Accelerator, output: Path
) -> Trainer:
    """The same loop as fine-tuning has, with the contrastive objective."""
    training = config.training
    batches = TrainBatches(
        len(train),
        training.per_device_train_batch_size,
        seed=config.seed,
        world_size=accelerator.num_processes,
        rank=accelerator.process_index,
        accumulation=training.gradient_accumulation_steps,
    )
    loader = build_loader(train, batches, num_workers=0)
    optimizer = build_optimizer(model, config.optim)
    scheduler = build_scheduler(optimizer, config.optim, training.epochs * batches.steps_per_epoch)
    model.to(accelerator.device)
    return Trainer(accelerator, model, ImageTextContrast(), loader, optimizer, scheduler, training, config.seed, output)


@torch.no_grad()
def name_objects(model: VideoCLIP, stills: StillsDataset, world: WorldConfig) -> dict[str, Any]:
    """Share of stills whose object the model names, zero-shot among all objects of the world."""
    model.eval()
    model.set_labels(world.objects, ["a photo of a {}."])
    hits = 0
    for start in range(0, len(stills), 250):
        captions = stills.captions[start : start + 250]
        best = model(stills.frames[start : start + 250, None].to(model.pixel_mean.device)).logits.argmax(dim=1)
        hits += sum(world.objects[index] in caption.split() for index, caption in zip(best, captions, strict=True))
    return proportion(hits, len(stills))


def _report(
    model: VideoCLIP, stills: StillsDataset, world: WorldConfig, accelerator: Accelerator, epoch: int
) -> dict[str, Any]:
    share = name_objects(model, stills, world)["value"]
    accelerator.print(f"epoch {epoch + 1}: names {share:.3f} of the objects, logit scale {model.text.logit_scale:.1f}")
    return {"val_object": share}
