"""`run.json`, the record of a run: config, environment and outcome, with one session per start."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from clipvid import RunError
from clipvid.files import write_json
from clipvid.runs.lock import locked
from clipvid.runs.memory import peak_resident_memory
from clipvid.runs.preemption import Preempted

FORMAT_VERSION = 1


@contextmanager
def recorded(
    folder: Path, accelerator: Accelerator, config: dict[str, Any], manifests: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """Lock `folder`, and write `folder/run.json` at the start and the end of the block.

    Yields the session's entry, to which the caller adds figures. A killed session has no `outcome`. Others end as
    `finished`, `preempted`, or with their error.

    Args:
        folder: Output folder of the run.
        accelerator: The Accelerator.
        config: The resolved config, including the seed.
        manifests: Hash of each list of videos, of the templates, and of the weights of `init_from`.

    Raises:
        RunError: Another run uses the folder. All processes raise it.
    """
    with locked_by_main_process(folder, accelerator), _recorded(folder, accelerator, config, manifests) as session:
        yield session


@contextmanager
def locked_by_main_process(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Hold the lock of `folder` in the main process within the block.

    Raises:
        RunError: Another run uses the folder. All processes raise it.
    """
    with ExitStack() as stack:
        refusal = None
        if accelerator.is_main_process:
            try:
                stack.enter_context(locked(folder))
            except RunError as error:
                refusal = str(error)
        refusal = broadcast_object_list([refusal])[0]
        if refusal is not None:
            raise RunError(refusal)
        yield


@contextmanager
def _recorded(
    folder: Path, accelerator: Accelerator, config: dict[str, Any], manifests: dict[str, str]
) -> Iterator[dict[str, Any]]:
    path = folder / "run.json"
    session: dict[str, Any] = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": git_revision(Path(__file__).parent),
        "packages": package_versions(),
        "hardware": hardware(accelerator),
    }
    record = {"format_version": FORMAT_VERSION, "config": config, "manifests": manifests, "sessions": []}
    record["sessions"] = [*_earlier_sessions(path), session]
    start = time.perf_counter()
    _write(path, record, accelerator)
    outcome = "killed"
    try:
        yield session
        outcome = "finished"
    except Preempted:
        outcome = "preempted"
        raise
    except Exception as error:
        outcome = f"{type(error).__name__}: {error}"
        raise
    finally:
        session |= {
            "outcome": outcome,
            "wall_seconds": round(time.perf_counter() - start, 3),
            "peak_memory_bytes": peak_memory(accelerator),
        }
        _write(path, record, accelerator)


def recorded_inputs(folder: Path) -> dict[str, str]:
    """Return `manifests` of `folder/run.json`, or an empty dict if it cannot be read."""
    try:
        return dict(json.loads((folder / "run.json").read_text())["manifests"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def package_versions() -> dict[str, str]:
    """Return the versions of Python, this package and its installed requirements."""
    versions = {"python": platform.python_version()}
    try:
        lines = [line for line in requires("clipvid") or [] if "extra ==" not in line]
        needed = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in lines]
    except PackageNotFoundError:
        needed = ["torch", "open_clip_torch", "accelerate"]
    for name in ("clipvid", *needed):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def git_revision(folder: Path) -> str | None:
    """Return the commit of the code in `folder`, with `-dirty` if files differ, or None outside of git."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def hardware(accelerator: Accelerator) -> dict[str, Any]:
    """Return machine, device, number of processes and their distribution."""
    cuda = accelerator.device.type == "cuda"
    return {
        "machine": f"{platform.system()} {platform.machine()}",
        "cpu_cores": os.cpu_count(),
        "device": torch.cuda.get_device_name(accelerator.device) if cuda else str(accelerator.device),
        "processes": accelerator.num_processes,
        "distributed_type": accelerator.distributed_type.value,
        "mixed_precision": accelerator.mixed_precision,
    }


def peak_memory(accelerator: Accelerator) -> int:
    """Return the peak memory of this process in bytes: of its GPU, or resident memory without one."""
    if accelerator.device.type == "cuda":
        return torch.cuda.max_memory_allocated(accelerator.device)
    return peak_resident_memory()


def _earlier_sessions(path: Path) -> list[dict[str, Any]]:
    try:
        sessions: list[dict[str, Any]] = json.loads(path.read_text())["sessions"]
        return list(sessions)
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _write(path: Path, record: dict[str, Any], accelerator: Accelerator) -> None:
    if not accelerator.is_main_process:
        return
    try:
        write_json(path, record)
    except OSError as error:
        accelerator.print(f"{path} could not be written ({error}); the run continues")
