"""Progress of a run with the figures of its last steps: a bar on a terminal, occasional lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from accelerate import Accelerator
from rich import progress as bars
from torch import Tensor

SECONDS_BETWEEN_LINES = 20.0


class Progress:
    """Steps done of `total`, with the latest figures, clips per second and remaining time. Silent unless `enabled`."""

    def __init__(self, total: int, done: int, enabled: bool):
        self.total, self.first, self.done = total, done, done
        self.enabled, self.terminal = enabled, enabled and sys.stderr.isatty()
        self.figures = ""
        self.start = self.last_line = time.monotonic()

    def __enter__(self) -> Progress:
        if self.terminal:
            columns = (
                "{task.completed}/{task.total}",
                bars.BarColumn(),
                bars.TimeRemainingColumn(),
                "{task.fields[figures]}",
            )
            self.bar = bars.Progress(*columns, transient=True)
            self.task = self.bar.add_task("", total=self.total, completed=self.done, figures="")
            self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.terminal:
            self.bar.stop()
        if self.enabled and self.done > self.first:
            self._line()

    def show(self, entry: dict[str, Any]) -> None:
        """Show the figures of a log entry."""
        self.figures = f"loss {entry['loss']:.3f}, {entry['clips_per_second']:.1f} clips/s"

    def advance(self, done: int) -> None:
        """Set the number of finished steps."""
        self.done = done
        if self.terminal:
            self.bar.update(self.task, completed=done, figures=self.figures)
        elif self.enabled and time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES:
            self._line()

    def _line(self) -> None:
        self.last_line = time.monotonic()
        left = (self.last_line - self.start) / (self.done - self.first) * (self.total - self.done)
        parts = ", ".join(part for part in (self.figures, f"{left:.0f} s left") if part)
        print(f"step {self.done}/{self.total}: {parts}", file=sys.stderr, flush=True)


class Remaining:
    """Lines on standard error with the time left: the first after a second, then every 20 seconds.

    Args:
        unit: plural of what is counted, such as `windows of the timeline`.
    """

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.start = time.monotonic()
        self._next = self.start + 1

    def __call__(self, done: int, total: int) -> None:
        """Print a line if it is time for one and something is left."""
        now = time.monotonic()
        if now < self._next or not 0 < done < total:
            return
        left = (now - self.start) / done * (total - done)
        print(f"{done} of {total} {self.unit}, {left:.0f} s left", file=sys.stderr, flush=True)
        self._next = now + SECONDS_BETWEEN_LINES


class RunningMean:
    """Means of finite figures over the steps since the last log entry. No synchronization before `take`.

    Args:
        accelerator: The Accelerator.
        held: Result of `held` of each process when the run was interrupted. Ignored for another number of processes.
    """

    def __init__(self, accelerator: Accelerator, held: list[dict[str, list[float]]]):
        self.accelerator = accelerator
        self._reset()
        if len(held) == accelerator.num_processes:
            own = held[accelerator.process_index]
            self.sums |= {name: torch.tensor(pair, device=accelerator.device) for name, pair in own.items()}

    def _reset(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.clips = 0
        self.start = time.perf_counter()

    def add(self, parts: dict[str, Tensor], clips: int) -> None:
        """Add the figures of a micro-batch of `clips` clips, scalars by name."""
        for name, value in parts.items():
            pair = torch.stack([value.float().nan_to_num(0.0, 0.0, 0.0), value.isfinite().float()])
            self.sums[name] = self.sums[name] + pair if name in self.sums else pair
        self.clips += clips

    def held(self) -> dict[str, list[float]]:
        """Return the sums and counts of this process, for a checkpoint."""
        return {name: pair.tolist() for name, pair in self.sums.items()}

    def take(self) -> dict[str, float]:
        """Return the means over the steps and all processes, and clips per second. Reset the window."""
        pairs = torch.stack(list(self.sums.values()))
        if self.accelerator.num_processes > 1:
            pairs = self.accelerator.reduce(pairs, "sum")
        means = dict(zip(self.sums, (pairs[:, 0] / pairs[:, 1]).tolist(), strict=True))
        means["clips_per_second"] = self.clips / (time.perf_counter() - self.start)
        self._reset()
        return means
