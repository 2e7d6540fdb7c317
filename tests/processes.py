"""Real processes that run a command or a function, to be killed, stopped and awaited.

They are forked from a server that has imported clipvid once, so that they start without importing torch. Systems
without fork start each of them from nothing.
"""

import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_CAN_FORK = "forkserver" in multiprocessing.get_all_start_methods()
SERVER: Any = multiprocessing.get_context("forkserver" if _CAN_FORK else "spawn")
if _CAN_FORK:
    # The verbs import lazily, so that everything they use later is named here.
    SERVER.set_forkserver_preload(["clipvid.commands.finetune", "clipvid.experiments.python_api", "torch._dynamo"])
SHARDED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "VideoBlock",
}


class Worker:
    """Process with its output so far in `said` and its exit code in `ended`, once it has ended."""

    def __init__(self, log: Path, environment: dict[str, str], target: Callable[..., None], *args: Any) -> None:
        self.log = log
        self.process = SERVER.Process(target=_enter, args=(log, environment, target, args))
        self.process.start()

    @property
    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def ended(self, timeout: float = 300) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"still running after {timeout} s:\n{self.said[-3000:]}")
        return self.process.exitcode

    def signal(self, name: str) -> None:
        os.kill(self.process.pid, getattr(signal, name))


def finetune(args: list[str], log: Path, **environment: str) -> Worker:
    """Start `clipvid finetune` with `args`."""
    return Worker(log, environment, _finetune, args)


def together(count: int, folder: Path, target: Callable[..., None], *args: Any, **environment: str) -> list[Worker]:
    """Start `count` processes with the environment of a launcher. Their logs are in `folder`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": str(count)}
    return [
        Worker(
            folder / f"rank_{rank}.log",
            meeting | environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            target,
            *args,
        )
        for rank in range(count)
    ]


def finetune_together(count: int, args: list[str], folder: Path, **environment: str) -> list[Worker]:
    """Start `clipvid finetune` on `count` processes."""
    return together(count, folder, _finetune, args, **environment)


def all_end_well(workers: list[Worker]) -> None:
    """Wait for processes, and show the output of one that failed."""
    codes = [worker.ended() for worker in workers]
    assert codes == [0] * len(workers), "\n".join(worker.said[-3000:] for worker in workers)


def _enter(log: Path, environment: dict[str, str], target: Callable[..., None], args: tuple[Any, ...]) -> None:
    os.environ.update({"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **environment})
    torch.set_num_threads(1)
    # As in a process that a user starts: workers of a loader only detect the death of their direct parent.
    multiprocessing.set_start_method(None, force=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    target(*args)


def _finetune(args: list[str]) -> None:
    from clipvid.commands import run

    run("finetune", args)
