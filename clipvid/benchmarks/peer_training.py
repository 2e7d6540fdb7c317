"""Training steps of the same tower under several loops: time between two batches, and peak memory.

Every measurement has a new process, in which all clips are in memory. The whole tower is trained in float32 with AdamW
and clipped gradients.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from clipvid.backbone.open_clip_training import train_one_epoch
from clipvid.benchmarks.fresh_process import in_fresh_process
from clipvid.benchmarks.peers import OURS, PeerRow, PeersBenchmark, Sample
from clipvid.data.loader import TrainBatches, build_loader
from clipvid.model.factory import create_model
from clipvid.model.pixels import normalize
from clipvid.model.video_clip import VideoCLIP
from clipvid.runs.memory import peak_resident_memory
from clipvid.training.config import TrainingConfig
from clipvid.training.objectives import Classification, ImageTextContrast, Objective
from clipvid.training.optim import OptimConfig, build_optimizer, build_scheduler
from clipvid.training.trainer import Trainer

VIDEO, IMAGE_TEXT = "classes of videos", "images and texts"
BARE, HF_TRAINER, OPEN_CLIP = "bare loop", "transformers Trainer", "open_clip train_one_epoch"
CASES = {VIDEO: (OURS, BARE, HF_TRAINER), IMAGE_TEXT: (OURS, BARE, OPEN_CLIP)}
RATE, CLIP_NORM, NUM_CLASSES = 1e-6, 1.0, 10


def measure_training(config: PeersBenchmark) -> list[PeerRow]:
    """Measure all loops in turns."""
    samples: dict[tuple[str, str], list[Sample]] = {(case, tool): [] for case, tools in CASES.items() for tool in tools}
    for _ in range(config.repeats):
        for (case, tool), own in samples.items():
            own.append(in_fresh_process(measure_one, config, case, tool))
    return [PeerRow("training step", case, tool, own, "ms") for (case, tool), own in samples.items()]


def measure_one(config: PeersBenchmark, case: str, tool: str) -> Sample:
    """Return milliseconds of a step and peak memory in this process."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.manual_seed(0)
    model = build_model(config, case)
    clips = ClipsInMemory(config, case, model)
    own = model if case == VIDEO or tool == OURS else model.backbone.open_clip_model(with_text=True)
    del model
    before = peak_resident_memory()
    with TemporaryDirectory() as folder, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        LOOPS[tool](own, clips, Path(folder))
    return Sample(1000 * clips.seconds_per_step(), (peak_resident_memory() - before) / 1e6)


def build_model(config: PeersBenchmark, case: str) -> VideoCLIP:
    """Build the model, with all its weights to be trained."""
    options: dict[str, Any] = {"num_frames": config.num_frames, "head": "linear"} if case == VIDEO else {}
    labels = [f"class {number}" for number in range(NUM_CLASSES)] if case == VIDEO else None
    tune = ["full", "head"] if case == VIDEO else ["full", "text"]
    return create_model(config.backbone, config.pretrained, adapter="none", tune=tune, labels=labels, **options)


class ClipsInMemory(Dataset[dict[str, Any]]):
    """Random clips with labels, or images with texts, by index or by key (epoch, index). Notes when each is fetched."""

    def __init__(self, config: PeersBenchmark, case: str, model: VideoCLIP):
        self.batch_size = config.batch_size * (1 if case == VIDEO else 4)
        count, size = self.batch_size * config.steps, model.image_size
        frames = config.num_frames if case == VIDEO else 1
        self.frames = torch.randint(256, (self.batch_size, frames, 3, size, size), dtype=torch.uint8)
        self.tokens: Tensor | None = None
        if case == IMAGE_TEXT:
            self.tokens = model.text.tokenize([f"picture {number}" for number in range(count)])
        self.count, self.fetched = count, list[float]()
        self.mean, self.std = model.pixel_mean.cpu(), model.pixel_std.cpu()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        self.fetched.append(time.perf_counter())
        index = key if isinstance(key, int) else key[1]
        other = {"label": index % NUM_CLASSES} if self.tokens is None else {"tokens": self.tokens[index]}
        return {"frames": self.frames[index % self.batch_size], "index": index, **other}

    def batches(self) -> Iterator[dict[str, Any]]:
        """Yield all batches of an epoch."""
        return iter(DataLoader(self, self.batch_size, drop_last=True))

    def images(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the first frames of a batch, normalized."""
        device = batch["frames"].device
        return normalize(batch["frames"][:, 0], self.mean.to(device), self.std.to(device))

    def seconds_per_step(self) -> float:
        """Return the median time between fetches of two batches, without the first two.

        Accelerate fetches a batch before the step on the one before it, so the first time is not that of a step.
        """
        starts = self.fetched[:: self.batch_size]
        return statistics.median([after - before for before, after in pairwise(starts)][2:])


def train_with_clipvid(model: VideoCLIP, clips: ClipsInMemory, folder: Path) -> None:
    """Train for one epoch with clipvid's trainer."""
    objective: Objective = ImageTextContrast() if clips.tokens is not None else Classification(NUM_CLASSES, seed=0)
    batches = TrainBatches(len(clips), clips.batch_size, seed=0)
    optimizer = build_optimizer(model, OptimConfig(lr=RATE))
    scheduler = build_scheduler(optimizer, OptimConfig(lr=RATE), batches.steps_per_epoch)
    settings = TrainingConfig(epochs=1, max_grad_norm=CLIP_NORM)
    loader, accelerator = build_loader(clips, batches, num_workers=0), Accelerator()
    model.to(accelerator.device)
    Trainer(accelerator, model, objective, loader, optimizer, scheduler, settings, 0, folder).run()


def train_bare(model: nn.Module, clips: ClipsInMemory, folder: Path) -> None:
    """Train for one epoch with a loop of a few lines."""
    device = Accelerator().device
    loss_of = _losses(model.to(device), clips)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    model.train()
    for batch in clips.batches():
        loss_of({name: value.to(device) for name, value in batch.items()}).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()


def _losses(model: Any, clips: ClipsInMemory) -> Callable[[dict[str, Tensor]], Tensor]:
    if clips.tokens is None:
        return lambda batch: F.cross_entropy(model(batch["frames"], patches=False).logits, batch["label"])
    return lambda batch: contrast(*model(clips.images(batch), batch["tokens"]))["contrastive_loss"]


def contrast(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor, output_dict: bool = True
) -> dict[str, Tensor]:
    """Return CLIP's loss, with the call signature of open_clip's losses."""
    logits = logit_scale * image_features @ text_features.T
    pairs = torch.arange(len(logits), device=logits.device)
    return {"contrastive_loss": (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2}


class _WithLoss(nn.Module):
    """The model in the interface of transformers' Trainer."""

    def __init__(self, model: VideoCLIP):
        super().__init__()
        self.model = model

    def forward(self, frames: Tensor, label: Tensor, index: Tensor) -> dict[str, Tensor]:
        """Return loss and logits."""
        logits = self.model(frames).logits
        return {"loss": F.cross_entropy(logits, label), "logits": logits}


def train_with_transformers(model: VideoCLIP, clips: ClipsInMemory, folder: Path) -> None:
    """Train for one epoch with transformers' Trainer."""
    from transformers import Trainer as HFTrainer
    from transformers import TrainingArguments

    settings = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=clips.batch_size,
        learning_rate=RATE,
        max_grad_norm=CLIP_NORM,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    HFTrainer(_WithLoss(model), settings, train_dataset=clips, data_collator=default_collate).train()


def train_with_open_clip(model: Any, clips: ClipsInMemory, folder: Path) -> None:
    """Train for one epoch with the training step of open_clip's package."""
    device = Accelerator().device
    optimizer = torch.optim.AdamW(model.to(device).parameters(), lr=RATE)
    train_one_epoch(model, _Pairs(clips), contrast, optimizer, CLIP_NORM, device)


class _Pairs:
    """Batches of normalized images and texts, as open_clip's loop reads them."""

    def __init__(self, clips: ClipsInMemory):
        self.clips, self.num_samples = clips, len(clips)
        self.num_batches = len(clips) // clips.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.clips.batches():
            yield self.clips.images(batch), batch["tokens"]


LOOPS: dict[str, Callable[[Any, ClipsInMemory, Path], None]] = {
    OURS: train_with_clipvid,
    BARE: train_bare,
    HF_TRAINER: train_with_transformers,
    OPEN_CLIP: train_with_open_clip,
}
