"""SIGTERM and SIGUSR1 ask a run to end early: it finishes its step, saves and leaves with an exit code of its own."""

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


EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, start the same command again
SIGNALS = (signal.SIGTERM, signal.SIGUSR1) if hasattr(signal, "SIGUSR1") else (signal.SIGTERM,)


class Preempted(Exception):
    """The run was asked to end and can go on later; `EXIT_CODE` is the exit code that says so."""


class Preemption:
    """Within `with Preemption():` the signals raise `Preempted`, where `deferred` they only set `signalled`.

    Signal handlers belong to the main thread; elsewhere nothing is installed.
    """

    def __init__(self, timeout: timedelta = timedelta(minutes=30)) -> None:
        """timeout: how long `agreed` waits for a process that does not answer before it raises RuntimeError."""
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
        """Signals wait until `agreed` is asked, or the end of the block."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.signalled:
            raise Preempted

    def agreed(self, now: bool = False) -> bool:
        """Whether to stop: called by all processes at the same places, answered the same on all of them.

        With several processes the answer is that of the last call, unless it is wanted `now`: each call collects what
        the one before asked, over a channel of its own on the CPU, so that no device and no slow peer is waited for.
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
