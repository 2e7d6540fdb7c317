"""Evaluations side by side, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from clipvid.experiments.run import EvaluateConfig, evaluate_protocol

LOG = "log.txt"


@dataclass(frozen=True)
class Ended:
    """name: of the evaluation. seconds: that it took. error: in one line; None for one that is finished."""

    name: str
    seconds: float
    error: str | None


def evaluate_side_by_side(configs: dict[str, EvaluateConfig], jobs: int, threads: int) -> Iterator[Ended]:
    """Measure all, `jobs` at a time with `threads` CPU threads each, and tell of each as it ends.

    What one prints goes to `log.txt` in its folder. One that fails, whatever the way, takes no other with it. When the
    caller stops asking, or dies, those under way end too.
    """
    context: Any = multiprocessing.get_context("forkserver" if sys.platform != "win32" else "spawn")
    context.set_forkserver_preload([__name__])
    waiting = list(configs.items())
    running: dict[str, tuple[Any, float, Path]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name, config = waiting.pop(0)
                log = Path(config.output_dir) / LOG
                process = context.Process(target=_evaluate, args=(config, log, threads), name=name)
                process.start()
                running[name] = process, time.monotonic(), log
            multiprocessing.connection.wait([process.sentinel for process, _, _ in running.values()])
            for name, (process, start, log) in list(running.items()):
                if process.exitcode is not None:
                    del running[name]
                    yield Ended(name, time.monotonic() - start, _error(process.exitcode, log))
    finally:
        for process, _, _ in running.values():
            process.terminate()
        for process, _, _ in running.values():
            process.join()


def _evaluate(config: EvaluateConfig, log: Path, threads: int) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    log.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    torch.set_num_threads(threads)
    evaluate_protocol(config, Accelerator(mixed_precision=config.mixed_precision))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _error(code: int, log: Path) -> str | None:
    if code == 0:
        return None
    if code < 0:
        return f"ended by signal {-code}; its log is {log}"
    lines = log.read_text(errors="replace").split("\n") if log.is_file() else []
    told = [line for line in lines if line.strip()]
    return f"{told[-1] if told else f'exit code {code}'} (the whole of it in {log})"
