"""Training loop for any objective, on one process or many, over objects built by the caller.

`clipvid.evaluation.loop` has the evaluation loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeAlias

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, send_to_device
from torch import Tensor
from torch.utils.data import DataLoader

from clipvid import InputError, RunError
from clipvid.backbone.state_dicts import load_strictly
from clipvid.data.loader import TrainBatches
from clipvid.data.sampling import keyed_generator
from clipvid.distributed import full, load_optimizer_state, prepare, whole
from clipvid.files import printable
from clipvid.model.feature_cache import FeatureCache
from clipvid.model.trainable import TrainableModel
from clipvid.runs.preemption import Preempted, Preemption
from clipvid.runs.progress import Progress, RunningMean
from clipvid.training.averaging import TrainedWeights
from clipvid.training.checkpoint import Checkpoint, load_checkpoint, load_newest, save_checkpoint
from clipvid.training.nonfinite import StepGuard, diverged
from clipvid.training.objectives import Objective
from clipvid.training.optim import SkippingAdamW
from clipvid.training.state import LoopSettings, TrainState

CHECKPOINTS = "checkpoints"
EpochEnd: TypeAlias = Callable[[int], dict[str, Any]]


@dataclass
class Trainer:
    """Training run over `loader`, whose batch sampler decides the clips of each step.

    `name_of` maps the index of a sample to its name in messages. `features` are the stored features of the frozen part
    of the model, which a loader made with them returns.
    """

    accelerator: Accelerator
    model: TrainableModel
    objective: Objective
    loader: DataLoader
    optimizer: SkippingAdamW
    scheduler: torch.optim.lr_scheduler.LRScheduler
    settings: LoopSettings
    seed: int
    output_dir: Path
    name_of: Callable[[int], str] = str
    features: FeatureCache | None = None
    state: TrainState = field(default_factory=TrainState)
    _steps: int = field(default=0, init=False)
    _seconds: float = field(default=0.0, init=False)

    def run(
        self,
        stop: Preemption | None = None,
        on_epoch_end: EpochEnd | None = None,
        before: Callable[[], None] | None = None,
    ) -> TrainState:
        """Train to the end, from the newest intact checkpoint in `output_dir` if there is one.

        Args:
            stop: Signals that end the run early. Without it, the run ignores signals.
            on_epoch_end: Called with the number of the finished epoch, from 0. Its figures are added to the history.
            before: Called before the first step of a run without a checkpoint. It may change the weights.

        Raises:
            Preempted: A signal ended the run. The state was saved.
            RunError: The run diverged. The message names the samples.
        """
        self._stop = stop or Preemption()
        checkpoint = self._find_checkpoint()
        if checkpoint is not None:
            load_strictly(self.model.trained_state(), checkpoint.weights["model"])
        elif before is not None:
            before()
        names = list(self.model.trained_state())
        self.wrapped, self._stepper = prepare(self.accelerator, self.model, self.optimizer)
        self._weights = TrainedWeights(self.model, names, self.settings.ema_decay)
        self._saved_step = -1
        if checkpoint is not None:
            self._restore(checkpoint)
        self._means = RunningMean(self.accelerator, self.state.windows)
        self._guard = StepGuard(self.accelerator, self.model, self.optimizer)
        self._tracking = True
        total = self.settings.epochs * self.batches.steps_per_epoch
        with Progress(total, self.state.step, self.accelerator.is_main_process) as self._progress:
            last = self.state.epoch if self._is_stuck() else self.settings.epochs
            for epoch in range(self.state.epoch, last):
                with self._stop.deferred():
                    self._run_epoch(epoch)
                self._finish_epoch(epoch, on_epoch_end)
                if self._is_stuck():
                    break
        return self.state

    def result(self) -> dict[str, Tensor]:
        """Return the best, averaged or last weights on the CPU. All processes call this together."""
        return self._weights.result(best=self.settings.load_best_model_at_end)

    def throughput(self) -> dict[str, float]:
        """Return steps, clips, seconds and clips per second of this session, without evaluation and saving."""
        clips = self._steps * self.batches.global_batch
        rate = {"clips_per_second": clips / self._seconds} if self._seconds else {}
        return {"steps": self._steps, "clips": clips, "training_seconds": self._seconds} | rate

    @property
    def batches(self) -> TrainBatches:
        """Batch sampler of the loader."""
        return self.loader.batch_sampler  # type: ignore[return-value]

    @property
    def checkpoints(self) -> Path:
        """Folder of this run's checkpoints."""
        return self.output_dir / CHECKPOINTS

    def _run_epoch(self, epoch: int) -> None:
        """Train from the current step to the end of the epoch, and save a checkpoint."""
        if self.state.step_in_epoch < self.batches.steps_per_epoch:
            for adapter in self.model.video_model.encoder.adapters():
                adapter.start_epoch(epoch)
            self.wrapped.train()
            self.batches.set_position(epoch, self.state.step_in_epoch)
            started = time.perf_counter()
            for number, batch in enumerate(self.loader):
                self._micro_step(epoch, number % self.batches.accumulation, batch)
                if self.accelerator.sync_gradients:
                    self._steps, self._seconds = self._steps + 1, self._seconds + time.perf_counter() - started
                    self._finish_step(epoch)
                    started = time.perf_counter()
        if self._saved_step != self.state.step:
            self._save()
        if self._stop.agreed(now=True):
            raise Preempted

    def _micro_step(self, epoch: int, micro: int, batch: dict[str, Any]) -> None:
        samples = batch.get("index")
        batch = self.ready(batch)
        _seed_everything(self.seed, self.state.step, micro, self.accelerator.process_index)
        with self.accelerator.accumulate(self.wrapped):
            loss, parts = self.objective(self.wrapped, batch, epoch)
            self.accelerator.backward(loss)
            self._guard.watch(loss, samples)
            if self.accelerator.sync_gradients:
                norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.settings.max_grad_norm)
                parts["grad_norm"] = full(norm)
                self._guard.close(parts["grad_norm"])
            self._stepper.step()
            self._stepper.zero_grad()
        self._means.add(parts, len(batch["index"]) * self.accelerator.num_processes)

    def ready(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return a batch of the loader on the device, with `frames` as the model takes them."""
        # Keys of random draws are read on the host.
        batch = send_to_device(batch, self.accelerator.device, non_blocking=True, skip_keys=["index", "epoch"])
        if self.features is not None and "is_stored" in batch:
            batch["frames"] = self.features.complete(batch)
        else:
            batch["frames"] = self.model.video_model.normalize(batch["frames"])
        return batch

    def _finish_step(self, epoch: int) -> None:
        self._weights.follow()
        self.scheduler.step()
        self.state.step += 1
        self.state.step_in_epoch += 1
        last = self.state.step_in_epoch == self.batches.steps_per_epoch
        if self.state.step % self.settings.logging_steps == 0 or last:
            self._judge()
            entry = {"step": self.state.step, "epoch": epoch, "lr": self.scheduler.get_last_lr()[0]}
            entry |= self._means.take()
            self.state.history.append(entry)
            self._track(entry)
            self._progress.show(entry)
        self._progress.advance(self.state.step)
        due = self.settings.save_steps and self.state.step % self.settings.save_steps == 0
        stop = self._stop.agreed()
        if stop or (due and not last):
            saved = self._save()
            if stop and not saved:
                raise RunError(f"interrupted at step {self.state.step}, which could not be saved; see above")
        if stop:
            raise Preempted

    def _finish_epoch(self, epoch: int, on_epoch_end: EpochEnd | None) -> None:
        """Evaluate. The checkpoint was written before, so an interrupted evaluation is repeated on resume."""
        with self._weights.evaluated():
            figures = on_epoch_end(epoch) if on_epoch_end else {}
            self._compare(epoch, figures)
        if figures:
            self.state.history.append({"step": self.state.step, "epoch": epoch, **figures})
            self._track(figures)
        self.state.epoch, self.state.step_in_epoch = epoch + 1, 0

    def _compare(self, epoch: int, figures: dict[str, Any]) -> None:
        if not self.settings.load_best_model_at_end or not figures:
            return
        name = self.settings.metric_for_best_model
        if name not in figures:
            raise InputError(f"metric_for_best_model={name!r}: the evaluation gives {', '.join(figures)}")
        if self.state.best is None or figures[name] > self.state.best["value"]:
            self.state.best = {"value": figures[name], "epoch": epoch}
            self._weights.keep_best()

    def _is_stuck(self) -> bool:
        """Return True if early stopping ends the run."""
        settings = self.settings
        passed = self.state.evaluations_since_best(settings.metric_for_best_model)
        is_over = settings.early_stopping and passed >= settings.early_stopping
        if not is_over or self.state.best is None or self.state.epoch >= settings.epochs:
            return False
        self.accelerator.print(
            f"training ends after epoch {self.state.epoch} of {settings.epochs}: {passed} evaluations were not "
            f"better than that of epoch {self.state.best['epoch'] + 1} (training.early_stopping)"
        )
        return True

    def _judge(self) -> None:
        """Count the skipped steps since the last call, log their samples, and end the run past the limit."""
        for step in self._guard.take():
            self.state.count(step.skipped)
            if step.skipped:
                names = [self.name_of(number) for number in step.samples]
                self.state.history.append({"before_step": self.state.step, "skipped_samples": names})
                listed = printable(", ".join(names))
                self.accelerator.print(f"step skipped, loss or gradients are not finite; samples: {listed}")
                if self.state.skipped_in_row >= self.settings.max_skipped_steps:
                    raise RunError(diverged(self.state.skipped_in_row, self.state.step, names))

    def _track(self, figures: dict[str, Any]) -> None:
        """Log figures to the trackers. If a tracker fails, training continues without it."""
        if not self._tracking:
            return
        try:
            self.accelerator.log(figures, step=self.state.step)
        except Exception as error:
            self._tracking = False
            self.accelerator.print(f"the tracker failed ({error!r}); the run continues, history.json has its figures")

    def _save(self) -> bool:
        """Save a checkpoint and return True on success. Older checkpoints stay in any case."""
        self._judge()
        weights, scaler = self._weights.state(), self.accelerator.scaler
        optimizer = {
            "optimizer": whole(self.optimizer.state_dict()),
            "scheduler": self.scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        self.state.windows = gather_object([self._means.held()])
        progress = asdict(self.state) | {"global_batch": self.batches.global_batch}
        progress["per_device_batch"] = self.batches.per_device_batch
        saved = True
        if self.accelerator.is_main_process:
            try:
                save_checkpoint(
                    self.checkpoints, Checkpoint(weights, optimizer, progress), self.settings.save_total_limit
                )
            except OSError as error:
                saved = False
                self.accelerator.print(f"step {self.state.step} could not be saved: {error}")
        self._saved_step = self.state.step
        self.accelerator.wait_for_everyone()
        return saved

    def _find_checkpoint(self) -> Checkpoint | None:
        """Return the newest intact checkpoint as found by the first process."""
        newest = load_newest(self.checkpoints) if self.accelerator.is_main_process else None
        path = broadcast_object_list([newest[0] if newest else None])[0]
        if path is None:
            return None
        checkpoint = newest[1] if newest else load_checkpoint(path)
        before = checkpoint.progress.get("global_batch", self.batches.global_batch)
        if before != self.batches.global_batch:
            raise InputError(
                f"{path} was trained with {before} clips per step, this run has {self.batches.global_batch} "
                "(per_device_train_batch_size x processes x gradient_accumulation_steps): choose them so that it is "
                f"{before} again, or choose another output_dir"
            )
        return checkpoint

    def _restore(self, checkpoint: Checkpoint) -> None:
        load_optimizer_state(self.optimizer, checkpoint.optimizer["optimizer"])
        self.scheduler.load_state_dict(checkpoint.optimizer["scheduler"])
        if checkpoint.optimizer["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(checkpoint.optimizer["scaler"])
        self._weights.load(checkpoint.weights)
        names = {item.name for item in fields(TrainState)} & checkpoint.progress.keys()
        self.state = TrainState(**{name: checkpoint.progress[name] for name in names})
        self._saved_step = self.state.step
        self.accelerator.print(
            f"resuming from epoch {self.state.epoch + 1} of {self.settings.epochs}, step {self.state.step}"
        )


def _seed_everything(*key: int) -> None:
    """Seed the random draws inside the model (dropout, drop path) by the key."""
    torch.manual_seed(keyed_generator(*key).initial_seed())
