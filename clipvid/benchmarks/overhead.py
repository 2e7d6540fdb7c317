"""What the training loop costs beside the forward, backward and step that it is made for."""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from clipvid.data.loader import TrainBatches
from clipvid.model.video_clip import VideoCLIP
from clipvid.training.objectives import Classification
from clipvid.training.optim import OptimConfig, build_optimizer, build_scheduler
from clipvid.training.state import LoopSettings
from clipvid.training.trainer import Trainer

WARMUP = 3


class _Stopwatch:
    """A loader with its batch ready. Before each step of the loop it makes a bare one on a copy of the model, so that
    both meet the same machine; the time of the loop's step is that until it asks for the next batch."""

    def __init__(self, accelerator: Accelerator, model: VideoCLIP, batch: dict[str, Tensor], steps: int):
        self.accelerator, self.batch = accelerator, batch
        size = len(batch["label"])
        self.batch_sampler = TrainBatches(size * steps, size, seed=0)
        self.model = copy.deepcopy(model).to(accelerator.device).train()
        self.optimizer = build_optimizer(self.model, OptimConfig())
        self.objective = Classification(len(model.labels), 0)
        self.bare: list[float] = []
        self.loop: list[float] = []

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for _ in range(self.batch_sampler.steps_per_epoch):
            start = self._now()
            self._bare_step()
            between = self._now()
            yield dict(self.batch)
            self.bare.append(between - start)
            self.loop.append(self._now() - between)

    def _bare_step(self) -> None:
        with self.accelerator.autocast():
            frames = self.model.normalize(self.batch["frames"])
            loss, _ = self.objective(self.model, self.batch | {"frames": frames}, 0)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _now(self) -> float:
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize(self.accelerator.device)
        return time.perf_counter()


def loop_overhead(
    model: VideoCLIP, batch_size: int = 8, steps: int = 30, mixed_precision: str = "no"
) -> dict[str, float]:
    """Medians over `steps` of a bare step and of one in the training loop with its bookkeeping (clipping, log, skipped
    steps, signals, schedule), taken in turn on clips of noise that are ready on the device.

    Returns bare_seconds, loop_seconds and overhead, the share by which the loop is slower; checkpoints left out.
    """
    accelerator = Accelerator(mixed_precision=mixed_precision)
    size, device = model.image_size, accelerator.device
    model.set_labels(["a ball moving left", "a ball moving right"])
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(
        0, 256, (batch_size, model.num_frames, 3, size, size), dtype=torch.uint8, generator=generator
    )
    label = torch.arange(batch_size) % 2
    batch = {"frames": frames.to(device), "label": label.to(device), "index": torch.arange(batch_size)}
    watch = _Stopwatch(accelerator, model, batch, steps + WARMUP)
    optimizer = build_optimizer(model.to(device), config := OptimConfig())
    scheduler = build_scheduler(optimizer, config, steps + WARMUP)
    with tempfile.TemporaryDirectory() as folder:
        settings = LoopSettings(epochs=1)
        parts = (accelerator, model, watch.objective, watch, optimizer, scheduler, settings, 0, Path(folder))
        Trainer(*parts).run()  # type: ignore[arg-type]
    accelerator.free_memory()
    bare, loop = (statistics.median(times[WARMUP:]) for times in (watch.bare, watch.loop))
    return {"bare_seconds": bare, "loop_seconds": loop, "overhead": loop / bare - 1}
