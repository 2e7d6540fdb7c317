"""Atomic writing of files, detection of failed writes, hashes, and names of strangers as text that is safe to show."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from clipvid import InputError

_FOLDERS_FLUSH = os.name != "nt"
# The ZIP writer of torch.save checks its position after a write that was cut short.
_TORCH_WRITER = re.compile("PytorchStreamWriter failed|inline_container.*unexpected pos")
# Control characters, line separators, overrides of the writing direction, and bytes that are not UTF-8.
_ODD = "\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_UNSAFE = re.compile(f"[\x00-\x1f{_ODD}]")
_MAX_STEM = 100  # bytes; file systems allow 255, with a suffix and the mark of an unfinished file
_NOT_IN_NAMES = re.compile(r'[<>:"/\\|?*]')  # Windows refuses them
_MARKDOWN = re.compile(r"[\\`*\[\]!|~#$]|(?<![^\W_])_|_(?![^\W_])")


def printable(text: object) -> str:
    r"""Return text on one line for a terminal or page, with escapes such as `\x1b` for what a terminal would obey."""
    return _UNSAFE.sub(lambda sign: ascii(sign[0])[1:-1], str(text))


def printable_lines(text: object) -> str:
    """Return text of several lines, each as `printable` has it."""
    return "\n".join(map(printable, str(text).split("\n")))


def markdown_text(text: str) -> str:
    """Return text on one line that Markdown shows as it is: without markup, HTML, formulas or table cells."""
    line = " ".join(_UNSAFE.sub(" ", text).split())
    return _MARKDOWN.sub(r"\\\g<0>", line).replace("&", "&amp;").replace("<", "&lt;")


def markdown_code(text: str) -> str:
    """Return a code span of Markdown that shows printable text as it is."""
    line = printable(text)
    ticks = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    return f"{ticks} {line} {ticks}" if "`" in line else f"{ticks}{line}{ticks}"


def file_name(text: str, of: str | None = None) -> str:
    """Return the name of one file or folder for a text. Different texts have different names.

    A text that every file system takes as a name is kept. Others are made printable and cut, with the first digits of
    their hash at the end.

    Args:
        text: Source of the readable part.
        of: Source of the hash, by default `text`.
    """
    of = text if of is None else of
    stem = _NOT_IN_NAMES.sub("_", printable(text)).encode()[:_MAX_STEM].decode(errors="ignore")
    if stem == of and stem.strip(". ") == stem != "" and not re.search(r"\.[0-9a-f]{8}$", stem):
        return stem
    return f"{stem.lstrip('. ')}.{hashlib.sha256(of.encode(errors='surrogateescape')).hexdigest()[:8]}"


def json_text(content: Any, indent: int | None = None, ascii_only: bool = False) -> str:
    """Return JSON with letters of all scripts as they are, and escapes for what `printable` escapes."""
    text = json.dumps(content, indent=indent, ensure_ascii=ascii_only)
    # The only control characters that are left are the line ends of an indented text.
    return re.sub(f"[{_ODD}]", lambda sign: f"\\u{ord(sign[0]):04x}", text)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically (see `replacing`), without escaping non-ASCII letters."""
    write_text(path, json_text(content, indent=2) + "\n")


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text atomically (see `replacing`), with its line ends unchanged."""
    write_bytes(path, content.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes atomically (see `replacing`)."""
    with replacing(path) as aside:
        aside.write_bytes(content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`, and rename the file to `path` when the block ends.

    `path` therefore contains a complete file or none. If the block fails, `path` is not changed. The mode of the file
    follows the umask. The temporary name contains the process id.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name[:200]}.{os.getpid()}.{threading.get_ident()}.partial")
    try:
        aside.touch()
        mode = aside.stat().st_mode & 0o777
        yield aside
        aside.chmod(mode)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to write to; flush it and rename it to `path` when the block ends.

    `path` must not exist. If the block fails, nothing is left.
    """
    aside = path.with_name(f".{path.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        yield aside
        flush_folder(aside)
        aside.rename(path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    flush_folder(path.parent)


def write_flushed(path: Path, content: bytes) -> None:
    """Write a new file and flush it to the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Flush the names of a folder's files to the disk. Windows and some network file systems do not support it."""
    if not _FOLDERS_FLUSH:
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def check_regular(path: Path, what: str) -> None:
    """Raise InputError if `path` exists and is not a regular file, since opening a pipe would block.

    Raises:
        FileNotFoundError: `path` does not exist.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or device"
        raise InputError(f"{path}: the {what} is {kind}; expected a regular file")


@contextmanager
def replace_together(folder: Path, stale: Collection[str], last: str) -> Iterator[Path]:
    """Yield an empty folder. When the block ends, move the files written there into `folder`.

    Files with the same names are replaced, and files in `stale` removed, by renames within `folder`. If anything fails,
    in the block or between the renames, `folder` is restored. A process killed between two renames leaves some old and
    some new files; `last` is then still the old one. The mode of new files follows the umask.

    Args:
        folder: Target folder, created if it does not exist.
        stale: Paths of files, relative to `folder`.
        last: Path of the file to replace after all others, relative to `folder`.
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
        mode = new.stat().st_mode & 0o666  # the mode of a folder shows the umask
        for name in names:
            (new / name).chmod(mode)
        _swap(folder, new, old, sorted({*names, *stale}, key=lambda name: (name == last, name)))
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if is_new:
            _remove_if_empty(folder)


def _swap(folder: Path, new: Path, old: Path, names: list[str]) -> None:
    """Move each of `names` in `folder` to `old`, and from `new` to `folder`. Undo all moves if one fails."""
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


def failed_write(error: BaseException) -> str | None:
    """Return one line about a failed write, or None for other errors.

    safetensors and torch write files without Python and raise their own error classes. A full `/dev/shm`, through which
    loader processes pass batches, counts as a full disk.
    """
    from safetensors import SafetensorError

    text = str(error).partition("\n")[0]
    is_writer = isinstance(error, SafetensorError) and "I/O error" in text
    is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if is_writer or isinstance(error, RuntimeError):
        is_full = "No space left on device" in text or "os error 112" in text  # the latter is from Windows
        is_writer |= _TORCH_WRITER.search(text) is not None
    if is_full:
        return f"{text}. Free some space and start the same command again: finished work is kept"
    return f"{text}. The file could not be written; is the disk full?" if is_writer else None


def one_line(error: object, length: int = 500) -> str:
    """Return the message of another library's error in one line of at most `length` letters."""
    return cut(" ".join(str(error).split()), length)


def cut(text: str, length: int) -> str:
    """Return the first `length` letters of a text, with dots if there are more."""
    return text if len(text) <= length else f"{text[:length]}..."


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_key(*parts: Any) -> str:
    """Return the SHA-256 of values that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def cache_folder() -> Path:
    """Return the folder of everything that is computed once and kept: `$CLIPVID_CACHE`, or `~/.cache/clipvid`."""
    return Path(os.environ.get("CLIPVID_CACHE", Path.home() / ".cache" / "clipvid"))
