"""One training loop and one evaluation loop, for any objective, on one process or many.

They take finished objects: the model, the loader, the optimiser. Shapes: V videos, K classes, C views per video.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object, send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader

from clipvid.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from clipvid.data.loader import TrainBatches
from clipvid.data.sampling import keyed_generator
from clipvid.model import VideoCLIP, load_strictly
from clipvid.objectives import Objective
from clipvid.progress import Progress


@dataclass(frozen=True)
class LoopSettings:
    """How long to train and what to write down on the way.

    epochs: passes over the data. max_grad_norm: gradients are clipped to this norm.
    save_steps: optimiser steps between checkpoints; 0 for one per epoch. save_total_limit: how many are kept.
    logging_steps: optimiser steps between entries of the log.
    """

    epochs: int = 10
    max_grad_norm: float = 1.0
    save_steps: int = 0
    save_total_limit: int = 2
    logging_steps: int = 10


@dataclass
class TrainState:
    """Where a run stands: whole epochs done, optimiser steps done in this one and in all, and what was logged."""

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Trainer:
    """A run over `loader`, whose batch sampler decides what each step sees.

    on_epoch_end: called with the number of the finished epoch (from 0); its figures join the history.
    """

    accelerator: Accelerator
    model: VideoCLIP
    objective: Objective
    loader: DataLoader
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    settings: LoopSettings
    seed: int
    output_dir: Path
    on_epoch_end: Callable[[int], dict[str, Any]] | None = None
    state: TrainState = field(default_factory=TrainState)

    def run(self) -> TrainState:
        """Train to the end, from the newest checkpoint in `output_dir` where there is one."""
        self._resume()
        wrapped, optimizer = self.accelerator.prepare(self.model, self.optimizer)
        batches: TrainBatches = self.loader.batch_sampler  # type: ignore[assignment]
        total = self.settings.epochs * batches.steps_per_epoch
        with Progress(total, self.state.step, self.accelerator.is_main_process) as progress:
            for epoch in range(self.state.epoch, self.settings.epochs):
                self._run_epoch(wrapped, optimizer, batches, epoch, progress)
        return self.state

    def _run_epoch(
        self, wrapped: nn.Module, optimizer: Any, batches: TrainBatches, epoch: int, progress: Progress
    ) -> None:
        for adapter in self.model.encoder.adapters():
            adapter.start_epoch(epoch)
        wrapped.train()
        batches.set_position(epoch, self.state.step_in_epoch)
        window = _Window()
        for number, batch in enumerate(self.loader):
            batch = send_to_device(batch, self.accelerator.device, non_blocking=True)
            batch["frames"] = self.model.normalise(batch["frames"])
            _seed_everything(self.seed, self.state.step, number, self.accelerator.process_index)
            with self.accelerator.accumulate(wrapped):
                loss, parts = self.objective(wrapped, batch, epoch)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm)
                    parts["grad_norm"] = norm
                optimizer.step()
                optimizer.zero_grad()
            window.add(parts, len(batch["frames"]) * self.accelerator.num_processes)
            if self.accelerator.sync_gradients:
                self._finish_step(epoch, batches.steps_per_epoch, window, progress)
        self._finish_epoch(epoch)

    def _finish_step(self, epoch: int, steps_per_epoch: int, window: _Window, progress: Progress) -> None:
        self.scheduler.step()
        self.state.step += 1
        self.state.step_in_epoch += 1
        last = self.state.step_in_epoch == steps_per_epoch
        if self.state.step % self.settings.logging_steps == 0 or last:
            entry = {"step": self.state.step, "epoch": epoch, "lr": self.scheduler.get_last_lr()[0], **window.take()}
            self.state.history.append(entry)
            self.accelerator.log(entry, step=self.state.step)
            progress.show(entry)
        progress.advance(self.state.step)
        if self.settings.save_steps and self.state.step % self.settings.save_steps == 0 and not last:
            self._save()

    def _finish_epoch(self, epoch: int) -> None:
        figures = self.on_epoch_end(epoch) if self.on_epoch_end else {}
        if figures:
            self.state.history.append({"step": self.state.step, "epoch": epoch, **figures})
            self.accelerator.log(figures, step=self.state.step)
        self.state.epoch, self.state.step_in_epoch = epoch + 1, 0
        self._save()

    def _save(self) -> None:
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            optimizer = {
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else None,
            }
            keep = self.settings.save_total_limit
            weights = self.model.trained_state()
            save_checkpoint(self.checkpoints, self.state.step, weights, optimizer, asdict(self.state), keep)
        self.accelerator.wait_for_everyone()

    @property
    def checkpoints(self) -> Path:
        """Folder of this run's checkpoints."""
        return self.output_dir / "checkpoints"

    def _resume(self) -> None:
        found = list_checkpoints(self.checkpoints)
        if not found:
            return
        weights, optimizer, progress = load_checkpoint(found[-1])
        load_strictly(self.model.trained_state(), weights)
        self.optimizer.load_state_dict(optimizer["optimizer"])
        self.scheduler.load_state_dict(optimizer["scheduler"])
        if optimizer["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(optimizer["scaler"])
        self.state = TrainState(**{key: progress[key] for key in asdict(self.state)})
        self.accelerator.print(f"going on from {found[-1]} (epoch {self.state.epoch}, step {self.state.step})")


class _Window:
    """Means over the steps since the last log entry; nothing leaves the device before `take`."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.clips = 0
        self.start = time.perf_counter()

    def add(self, parts: dict[str, Tensor], clips: int) -> None:
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value
            self.counts[name] = self.counts.get(name, 0) + 1
        self.clips += clips

    def take(self) -> dict[str, float]:
        means = {name: float(value) / self.counts[name] for name, value in self.sums.items()}
        means["clips_per_second"] = self.clips / (time.perf_counter() - self.start)
        self._reset()
        return means


class Predictions(NamedTuple):
    """indices [V] into the manifest, ascending; labels [V]; scores [V, K], probabilities averaged over views."""

    indices: Tensor
    labels: Tensor
    scores: Tensor


@torch.no_grad()
def predict(accelerator: Accelerator, model: VideoCLIP, loader: DataLoader) -> Predictions:
    """Every video of the loader once, whatever the number of processes; the same on all of them.

    The loader's batches hold `frames [B, C, T, 3, S, S]`, `label [B]` and `index [B]`.
    """
    _share_buffers(accelerator, model)
    training = model.training
    model.eval()
    rows: list[tuple[int, int, Tensor]] = []
    for batch in loader:
        batch = send_to_device(batch, accelerator.device, non_blocking=True)
        views = batch["frames"].shape[1]
        with accelerator.autocast():
            logits = model(batch["frames"].flatten(0, 1)).logits
        scores = logits.float().softmax(dim=-1).unflatten(0, (-1, views)).mean(dim=1).cpu()
        rows += zip(batch["index"].tolist(), batch["label"].tolist(), scores, strict=True)
    model.train(training)
    gathered = sorted(gather_object(rows), key=lambda row: row[0])
    if not gathered:
        raise ValueError("nothing to evaluate: the evaluation set is empty")
    indices, labels, scores_list = zip(*gathered, strict=True)
    return Predictions(torch.tensor(indices), torch.tensor(labels), torch.stack(scores_list))


def _share_buffers(accelerator: Accelerator, model: nn.Module) -> None:
    """BatchNorm statistics differ between processes; everyone evaluates with those of the first."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            buffer.copy_(broadcast(buffer))


def _seed_everything(*key: int) -> None:
    """What is random inside the model (dropout, drop path) is a function of the key too."""
    torch.manual_seed(keyed_generator(*key).initial_seed())
