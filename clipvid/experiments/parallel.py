"""Parallel trials, each in a separate process."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from clipvid.experiments.trial import Trial
from clipvid.runs.preemption import EXIT_CODE, Preempted

LOG = "log.txt"


def run_side_by_side(
    trials: Sequence[Trial], jobs: int, threads: int | None, ended: Callable[[Trial, float, str | None], None]
) -> None:
    """Run all trials, `jobs` at a time, and call `ended` with trial, seconds and error as each ends.

    The output of a trial goes to `log.txt` in its folder. A failed trial does not stop the others, except those that
    start from it. If the caller raises or dies, the running trials end too.

    Args:
        trials: Trials to run.
        jobs: Number of parallel trials.
        threads: CPU threads of each process, or None for torch's default.
        ended: Callback. Its error is one line, or None for a finished trial.

    Raises:
        Preempted: A signal requested the end of a trial.
    """
    has_server = "forkserver" in multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if has_server else "spawn")
    if has_server:
        context.set_forkserver_preload([__name__])
    waiting, failed = list(trials), set[str]()
    running: dict[str, tuple[Trial, Any, float]] = {}
    try:
        while waiting or running:
            unfinished = {trial.name for trial in waiting} | running.keys()
            ready = [trial for trial in waiting if not unfinished.intersection(trial.after)]
            for trial in ready[: jobs - len(running)]:
                waiting.remove(trial)
                missing = failed.intersection(trial.after)
                if missing:
                    failed.add(trial.name)
                    ended(trial, 0.0, f"{missing.pop()} failed")
                else:
                    process = context.Process(target=_run, args=(trial, threads), name=trial.name)
                    process.start()
                    running[trial.name] = trial, process, time.monotonic()
            if not running:
                continue
            multiprocessing.connection.wait([process.sentinel for _, process, _ in running.values()])
            for name, (trial, process, start) in list(running.items()):
                if process.exitcode is not None:
                    del running[name]
                    error = _error(process.exitcode, trial.folder / LOG)
                    if error is not None:
                        failed.add(name)
                    ended(trial, time.monotonic() - start, error)
    finally:
        for _, process, _ in running.values():
            process.terminate()
        for _, process, _ in running.values():
            process.join()


def _run(trial: Trial, threads: int | None) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    log = trial.folder / LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        trial.run(Accelerator(mixed_precision=trial.mixed_precision))
    except Preempted:
        sys.exit(EXIT_CODE)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _error(code: int, log: Path) -> str | None:
    """Return the error of an ended process in one line, or None."""
    if code == 0:
        return None
    if code == EXIT_CODE:
        raise Preempted
    if code < 0:
        return f"ended by signal {-code}; its log is {log}"
    lines = log.read_text(errors="replace").split("\n") if log.is_file() else []
    written = [line for line in lines if line.strip()]
    return f"{written[-1] if written else f'exit code {code}'} (full log: {log})"
