"""Early end of a run on SIGTERM or SIGUSR1: it finishes its step, saves and exits with `EXIT_CODE`."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: no error, start the same command again
SIGNALS = (signal.SIGTERM, signal.SIGUSR1) if hasattr(signal, "SIGUSR1") else (signal.SIGTERM,)


class Preempted(Exception):
    """Signal to end a run that can be resumed later. The process exits with `EXIT_CODE`."""


class Preemption:
    """Context in which the signals raise `Preempted`. Within `deferred`, they only set `signalled`.

    Signal handlers require the main thread. In other threads nothing is installed.

    Args:
        timeout: Time that `agreed` waits for a process that does not respond before it raises RuntimeError.
    """

    def __init__(self, timeout: timedelta = timedelta(minutes=30)) -> None:
        self.timeout = timeout
        self.signalled = False
        self._deferred = False
        self._before: dict[int, Any] = {}
        self._group: Any = None
        self._asked: tuple[torch.Tensor, Any] | None = None

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Defer signals until `agreed` is called or the block ends."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.signalled:
            raise Preempted

    def agreed(self, now: bool = False) -> bool:
        """Return True if the run must stop. All processes call this at the same places and get the same answer.

        With several processes, a call returns the signals at the time of the previous call, unless `now` is set. Each
        call collects the result of the last one over a separate CPU channel. It therefore never waits for a device or a
        slow process.
        """
        import torch
        import torch.distributed as dist

        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return self.signalled
        if self._group is None:
            self._group = dist.new_group(backend="gloo", timeout=self.timeout)
        stop = self._collect()
        flag = torch.tensor(int(self.signalled))
        self._asked = flag, dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return stop or (now and self._collect())

    def _collect(self) -> bool:
        if self._asked is None:
            return False
        flag, work = self._asked
        work.wait()
        self._asked = None
        return bool(flag)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signalled = True
        if not self._deferred:
            raise Preempted
