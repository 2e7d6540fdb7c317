"""Lock on the output folder of a run, robust to crashes."""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from clipvid import RunError

NAME = ".lock"
SECONDS_TO_WRITE = 1.0  # a lock that is still empty after this time is from a crashed process
HEARTBEAT = 60.0  # seconds between the owner's updates of the modification time
SECONDS_TO_LIVE = 900.0  # an older lock of another host is from a crashed process


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder/.lock` within the block.

    The file contains host, process and start time of the owner, which regularly updates the file's modification time. A
    lock is replaced if its owner has died on this host, or is on another host and has not updated it for
    `SECONDS_TO_LIVE`.

    Raises:
        RunError: Another process holds the lock.
    """
    path = folder / NAME
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    own = {"host": platform.node(), "pid": os.getpid(), "started": psutil.Process().create_time()}
    while not _create(path, own):
        _remove_stale(path)
    released = threading.Event()
    threading.Thread(target=_keep_fresh, args=(path, own, released), daemon=True).start()
    try:
        yield
    finally:
        released.set()
        if _read(path) == own:
            path.unlink(missing_ok=True)
        if is_new:  # remove the folder if nothing was written
            with suppress(OSError):
                folder.rmdir()


def _keep_fresh(path: Path, own: dict[str, Any], released: threading.Event) -> None:
    """Update the modification time of this process's lock until it is released."""
    while not released.wait(HEARTBEAT):
        with suppress(OSError):
            if _read(path) == own:
                os.utime(path)


def _age(path: Path) -> float:
    """Return the seconds since a lock was updated, by the clock of the file system, which all hosts share."""
    probe = path.with_name(f"{NAME}.{platform.node()}.{os.getpid()}.clock")
    try:
        probe.write_bytes(b"")
        return probe.stat().st_mtime - path.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _create(path: Path, owner: dict[str, Any]) -> bool:
    """Write the lock and return True, or return False if the file exists."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(owner, file)
    except OSError:  # a full disk, for example
        path.unlink(missing_ok=True)
        raise
    return True


def _remove_stale(path: Path) -> None:
    """Remove the lock of a dead owner. Raise RunError if the owner may be alive."""
    owner, deadline = _read(path), time.monotonic() + SECONDS_TO_WRITE
    while owner is None and path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
        owner = _read(path)
    if owner is not None:
        holder = f"process {owner['pid']} of {owner['host']}"
        if owner["host"] != platform.node():
            try:
                age = _age(path)
            except FileNotFoundError:  # released in the meantime
                return
            if age < SECONDS_TO_LIVE:
                raise RunError(
                    f"{path.parent} is in use by {holder}, which cannot be checked from {platform.node()}. Choose "
                    f"another output_dir. If that run was killed, delete {path}, or start again in "
                    f"{(SECONDS_TO_LIVE - age) / 60:.0f} minutes"
                )
        elif _is_alive(owner):
            raise RunError(f"{path.parent} is in use by {holder}; wait until it ends, or choose another output_dir")
    aside = path.with_name(f"{NAME}.{os.getpid()}")
    with suppress(FileNotFoundError):
        path.rename(aside)
        if _read(aside) != owner:  # another process was faster and holds a new lock
            aside.rename(path)
        aside.unlink(missing_ok=True)


def _is_alive(owner: dict[str, Any]) -> bool:
    """Return True if the owner still runs. Its start time distinguishes it from a later process with the same id."""
    try:
        process = psutil.Process(owner["pid"])
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - owner["started"]) < 1
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _read(path: Path) -> dict[str, Any] | None:
    """Return the owner in a lock file, or None if it cannot be read."""
    try:
        owner = json.loads(path.read_text())
        return {"host": str(owner["host"]), "pid": int(owner["pid"]), "started": float(owner["started"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None
