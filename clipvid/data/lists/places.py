"""Names of lists, folders and shards that users type: found below the root, or from the working folder."""

from __future__ import annotations

import glob
import math
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path

from clipvid.data.lists.samples import ManifestError

MAX_SHARDS = 100_000


def locate(root: Path, name: str, what: str) -> str:
    """Return a name as it is if it exists below `root`, or else the absolute path of what it names here.

    If both exist and differ, a warning says which one is used.

    Args:
        root: folder that names start from.
        name: as users type it.
        what: what is looked for, in messages.

    Raises:
        FileNotFoundError: nothing there; names both places.
    """

    def exists(path: str) -> list[str]:
        try:
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except (OSError, ValueError):  # the reader of the file says why
            pass
        return [path]

    paths, is_here = _in_both(root, name, what, exists)
    return os.path.abspath(paths[0]) if is_here else name


def locate_shards(root: Path, pattern: str) -> list[Path]:
    """Return the files that match a pattern with `*` and `{000..009}`; see `locate`.

    Raises:
        FileNotFoundError: no file matches; names both places.
        ManifestError: the pattern names too many shards.
    """
    patterns = _braces(pattern)

    def matches(path: str) -> list[str]:
        start = path.removesuffix(pattern)
        return [file for part in patterns for file in sorted(glob.glob(f"{glob.escape(start)}{part}"))]

    paths, is_here = _in_both(root, pattern, "shard", matches)
    return [Path(os.path.abspath(file)) if is_here else Path(file) for file in paths]


def _in_both(root: Path, name: str, what: str, find: Callable[[str], list[str]]) -> tuple[list[str], bool]:
    """Return the paths of a name, and True if they are in the working folder only."""
    below = os.path.join(root, name)
    under = find(below)
    here = [] if os.path.isabs(name) else find(name)
    if not under and not here:
        places = below if os.path.isabs(name) or _same(root, ".") else f"{below} or {os.path.abspath(name)}"
        raise FileNotFoundError(f"no {what} at {places}; names start from data.root, or from the working folder")
    if under and here and not _same(under[0], here[0]):
        warnings.warn(
            f"{name!r} is in data.root and in the working folder: {below} is used, not {os.path.abspath(name)}; an "
            "absolute path chooses the other",
            stacklevel=4,
        )
    return under or here, not under


def _same(first: str | Path, second: str | Path) -> bool:
    try:
        return os.path.samefile(first, second)
    except (OSError, ValueError):
        return os.path.abspath(first) == os.path.abspath(second)


def _braces(pattern: str) -> list[str]:
    """Expand `a-{00..11}.tar` to a-00.tar, ..., a-11.tar.

    Raises:
        ManifestError: The pattern expands to more than `MAX_SHARDS` names.
    """
    counts = [int(last) - int(first) + 1 for first, last in re.findall(r"\{(\d{1,9})\.\.(\d{1,9})\}", pattern)]
    if math.prod(counts) > MAX_SHARDS:
        raise ManifestError(f"{pattern}: it expands to {math.prod(counts)} shards, more than {MAX_SHARDS}; correct it")
    match = re.search(r"\{(\d{1,9})\.\.(\d{1,9})\}", pattern)
    if match is None:
        return [pattern]
    before, after = pattern[: match.start()], pattern[match.end() :]
    numbers = range(int(match[1]), int(match[2]) + 1)
    return [name for i in numbers for name in _braces(f"{before}{i:0{len(match[1])}d}{after}")]
