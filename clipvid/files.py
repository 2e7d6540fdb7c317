"""Files written whole or not at all, and their hashes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any) -> None:
    """Write aside and rename: the file is whole or absent."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, content: str) -> None:
    """Write aside and rename: the file is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(content)
    aside.replace(path)


@contextmanager
def replace_together(folder: Path, stale: Collection[str], last: str) -> Iterator[Path]:
    """Yield an empty folder; when the block ends, move the files written there into `folder`.

    Files of the same names are replaced, and files in `stale` removed, by renames within `folder`. If anything fails,
    in the block or between the renames, `folder` is left as it was. A process that is killed between two renames leaves
    some old and some new files; `last` is still the old one then. New files have the mode that `open` gives.

    Args:
        folder: made if it does not exist.
        stale: paths of files, relative to `folder`.
        last: path of the file to replace after all others, relative to `folder`.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / ".partial"
    shutil.rmtree(aside, ignore_errors=True)
    new, old = aside / "new", aside / "old"
    try:
        new.mkdir(parents=True)
        old.mkdir()
        yield new
        names = [path.relative_to(new).as_posix() for path in sorted(new.rglob("*")) if path.is_file()]
        mode = new.stat().st_mode & 0o666  # of a folder: all that the umask allows
        for name in names:
            (new / name).chmod(mode)
        _swap(folder, new, old, sorted({*names, *stale}, key=lambda name: (name == last, name)))
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if is_new:
            _remove_if_empty(folder)


def _swap(folder: Path, new: Path, old: Path, names: list[str]) -> None:
    """Move each of `names` in `folder` to `old`, and from `new` to `folder`; undo all moves if one fails."""
    done: list[tuple[Path, Path]] = []
    try:
        for name in names:
            for source, target in ((folder / name, old / name), (new / name, folder / name)):
                if source.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    source.replace(target)
                    done.append((source, target))
    except BaseException:
        for source, target in reversed(done):
            target.replace(source)
        raise
    finally:
        for name in names:
            if (folder / name).parent != folder:
                _remove_if_empty((folder / name).parent)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
