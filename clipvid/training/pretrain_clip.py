"""Contrastive training of a small CLIP on captioned stills."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from clipvid import InputError
from clipvid.backbone.state_dicts import load_strictly
from clipvid.data.loader import TrainBatches, build_loader
from clipvid.data.synthetic.stills import StillsDataset
from clipvid.data.synthetic.world import WorldConfig
from clipvid.evaluation.metrics import proportion
from clipvid.files import write_json
from clipvid.model.factory import build_model
from clipvid.model.video_clip import VideoCLIP
from clipvid.runs.config_files import config_record
from clipvid.runs.output_folder import check_output
from clipvid.training.objectives import ImageTextContrast
from clipvid.training.optim import build_optimizer, build_scheduler
from clipvid.training.pretrain_config import PretrainClipConfig
from clipvid.training.session import preemption, session
from clipvid.training.trainer import Trainer


def pretrain_clip(config: PretrainClipConfig, accelerator: Accelerator) -> dict[str, Any]:
    """Train a CLIP on captioned stills, write its model folder, and return the figures of metrics.json.

    An interrupted run in `output_dir` is resumed.

    Raises:
        InputError: FSDP is on.
        FileExistsError: `output_dir` contains a run with another config.
    """
    if accelerator.is_fsdp2:
        raise InputError("pretraining does not work with FSDP; the small CLIP fits on any device, so use DDP")
    output, training = Path(config.output_dir), config.training
    check_output(output, config)
    torch.manual_seed(config.seed)
    model = build_model(config.model)
    model.encoder.gradient_checkpointing = training.gradient_checkpointing
    world, sizes = config.stills.world, (config.seed, model.image_size, model.text.tokenize)
    train = StillsDataset(world, config.stills.train, "stills", *sizes)
    val = StillsDataset(world, config.stills.val, "val_stills", *sizes)
    batch_size = training.per_device_eval_batch_size

    def on_epoch_end(epoch: int) -> dict[str, Any]:
        if (epoch + 1) % training.eval_epochs and epoch + 1 < training.epochs:
            return {}
        share, scale = name_objects(model, val, world, batch_size)["value"], model.text.logit_scale
        accelerator.print(f"epoch {epoch + 1}: names {share:.3f} of the objects, logit scale {scale:.1f}")
        return {"val_object": share}

    with preemption(config) as stop:
        trainer = build_clip_trainer(config, model, train, accelerator, output)
        with session(config, {}, accelerator, output, stop) as run:
            state = run.train(trainer, on_epoch_end)
            load_strictly(model.trained_state(), trainer.result())
            figures = {"object": name_objects(model, val, world, batch_size)}
            if accelerator.is_main_process:
                if config.export_dir is not None:
                    model.backbone.save(Path(config.export_dir), torch.float16)
                model.save_pretrained(output)
                write_json(output / "history.json", state.history)
                write_json(output / "metrics.json", figures | {"config": config_record(config)})
            accelerator.wait_for_everyone()
    return figures


def build_clip_trainer(
    config: PretrainClipConfig, model: VideoCLIP, train: StillsDataset, accelerator: Accelerator, output: Path
) -> Trainer:
    """Build the trainer with the contrastive objective, and move the model to its device."""
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
def name_objects(model: VideoCLIP, stills: StillsDataset, world: WorldConfig, batch_size: int) -> dict[str, Any]:
    """Return the share of stills whose object the model recognizes, zero-shot among all objects of the world."""
    model.eval()
    model.set_labels(world.objects, ["a photo of a {}."])
    hits = 0
    for start in range(0, len(stills), batch_size):
        captions = stills.captions[start : start + batch_size]
        best = model(stills.frames[start : start + batch_size, None].to(model.pixel_mean.device)).logits.argmax(dim=1)
        hits += sum(world.objects[index] in caption.split() for index, caption in zip(best, captions, strict=True))
    return proportion(hits, len(stills))
