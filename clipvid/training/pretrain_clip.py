"""Contrastive training of a small CLIP on captioned stills."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from clipvid.data.loader import TrainBatches, build_loader
from clipvid.data.synthetic.stills import StillsDataset
from clipvid.data.synthetic.world import WorldConfig
from clipvid.evaluation.metrics import proportion
from clipvid.model.video_clip import VideoCLIP
from clipvid.training.config import PretrainClipConfig
from clipvid.training.objectives import ImageTextContrast
from clipvid.training.optim import build_optimizer, build_scheduler
from clipvid.training.trainer import Trainer


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
