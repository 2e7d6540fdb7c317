"""How far a run is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich import progress as bars

SECONDS_BETWEEN_LINES = 20.0


class Progress:
    """Steps done of `total`, with the latest figures, clips per second and the time left. Silent unless `enabled`."""

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
        """Take over the figures of a log entry."""
        self.figures = f"loss {entry['loss']:.3f}, {entry['clips_per_second']:.1f} clips/s"

    def advance(self, done: int) -> None:
        """`done` steps are behind us."""
        self.done = done
        if self.terminal:
            self.bar.update(self.task, completed=done, figures=self.figures)
        elif self.enabled and time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES:
            self._line()

    def _line(self) -> None:
        self.last_line = time.monotonic()
        left = (self.last_line - self.start) / (self.done - self.first) * (self.total - self.done)
        print(f"step {self.done}/{self.total}: {self.figures}, {left:.0f} s left", file=sys.stderr, flush=True)
