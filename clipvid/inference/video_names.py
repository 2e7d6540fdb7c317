"""Videos in arguments of a command line: files, folders, patterns, addresses and standard input."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path

from clipvid.decoding.files import VIDEO_SUFFIXES

STDIN = "-"
SUFFIXES: tuple[str, ...] = tuple(sorted(VIDEO_SUFFIXES))


def expand_names(words: list[str]) -> Iterator[str]:
    """Yield the videos of the arguments: files, all videos in folders, matches of patterns, addresses, and `-`.

    Hidden files and those in hidden folders are left out, unless they are named themselves.
    """
    for word in words:
        if "://" in word and not word.startswith("file://"):
            from clipvid.inference.remote import list_remote  # fsspec is slow to import

            yield from list_remote(word, SUFFIXES)
        elif Path(word).is_dir():
            files = videos_in(Path(word))
            yield from map(str, files) if files else [word]
        elif word == STDIN or Path(word).exists() or not glob.has_magic(word):
            yield word
        else:
            matches = sorted(glob.glob(word, recursive=True))
            yield from expand_names(matches) if matches else [word]


def videos_in(folder: Path) -> list[Path]:
    """Return the paths of all videos in a folder and its subfolders, sorted, without hidden ones."""
    return sorted(path for path in folder.rglob("*") if _is_shown(path.relative_to(folder)) and path.is_file())


def _is_shown(path: Path) -> bool:
    """Return True for the name of a video, below a folder, without a hidden part."""
    return path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.parts)
