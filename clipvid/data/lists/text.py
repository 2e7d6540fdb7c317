"""Text of lists: lines, numbers and JSON, read with limits and from regular files only."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipvid import InputError
from clipvid.data.lists.samples import ManifestError
from clipvid.files import check_regular

MAX_LINE = 100_000  # characters
MAX_TEXT = 256 << 20  # bytes of a list that is held in memory
# Escapes of halves of characters, which come in pairs.
_HALVES = re.compile(r"\\u[dD][89a-fA-F]")
_NUMBER = re.compile(r"\+?0*(\d{1,15})")


def read_lines(file: Path, what: str) -> list[str]:
    """Return the lines of a UTF-8 file, without line ends.

    Args:
        file: Regular file of at most `MAX_TEXT` bytes.
        what: Name of the list in messages.

    Raises:
        ManifestError: The file has another kind or encoding, or a line of more than `MAX_LINE` characters.
        FileNotFoundError: The file does not exist.
    """
    check_list(file, what)
    if file.stat().st_size > MAX_TEXT:
        raise ManifestError(f"{file}: the {what} has more than {MAX_TEXT >> 20} MiB; save it as CSV or Parquet")
    lines = list(iter_lines(file, what))
    if file.suffix not in (".json", ".jsonl"):
        for number, line in enumerate(lines, 1):
            check_line(file, number, line)
    return lines


def iter_lines(file: Path, what: str) -> Iterator[str]:
    """Yield the lines of a UTF-8 file, without line ends (LF, CRLF or CR) and without a byte order mark."""
    try:
        with file.open(encoding="utf-8-sig") as handle:
            for line in handle:
                yield line.removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{file}: {what} is not UTF-8 text ({error.reason}); save it as UTF-8") from None


def check_list(file: Path, what: str) -> None:
    """Raise an error if `file` is missing or not a regular file."""
    try:
        check_regular(file, what)
    except FileNotFoundError:
        raise FileNotFoundError(f"no {what} at {file}; the path is relative to the root unless absolute") from None
    except InputError as error:
        raise ManifestError(str(error)) from None
    except (OSError, ValueError) as error:
        raise ManifestError(f"{str(file)[:200]!r}: the {what} cannot be opened ({error}); correct its path") from None


def check_line(file: Path, number: int, line: str) -> None:
    """Raise ManifestError if a line is longer than `MAX_LINE` characters."""
    if len(line) > MAX_LINE:
        raise ManifestError(
            f"{file}:{number}: the line has {len(line)} characters, more than {MAX_LINE}; correct or drop it"
        )


def parse_json(file: Path, text: str, line: int | None = None) -> Any:
    """Parse JSON text.

    Args:
        file: Source of the text.
        text: The whole file, or one line of it.
        line: Number of that line.

    Raises:
        ManifestError: The text is not JSON, nested too deep, or has a number with too many digits or half a character.
    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        what = "not JSON" if line is None else "not a line of JSON"
        raise ManifestError(f"{file}:{line or error.lineno}: {what} ({error.msg}); correct it") from None
    except RecursionError:
        raise ManifestError(f"{file}:{line or 1}: its JSON is nested too deep; expected a flat list") from None
    except ValueError:
        raise ManifestError(f"{file}:{line or 1}: its JSON has a number of too many digits; correct it") from None
    escape = _half_character(text, content)
    if escape is not None:
        first = line or text.count("\n", 0, text.find(escape)) + 1
        raise ManifestError(f"{file}:{first}: its JSON has {escape}, half of a character; correct it")
    return content


def _half_character(text: str, content: Any) -> str | None:
    r"""Return an escape such as `\ud800` without its other half, or None. `content` is the parsed text."""
    if not _HALVES.search(text):
        return None
    half = re.search("[\ud800-\udfff]", json.dumps(content, ensure_ascii=False))
    if half is None:
        return None
    escape = f"\\u{ord(half[0]):04x}"
    written = re.search(re.escape(escape), text, re.IGNORECASE)
    return written[0] if written else escape


def whole_number(text: str) -> int | None:
    """Return an integer of at most 15 digits (after leading zeros and one `+`), or None for other text."""
    match = _NUMBER.fullmatch(text)
    return int(match[1]) if match else None


def is_number(text: str) -> bool:
    """Return True for digits with an optional sign, of any length."""
    return re.fullmatch(r"[+-]?\d+", text) is not None


def clipped(text: object, length: int = 80) -> str:
    """Return `repr(text)`, shortened for a message."""
    shown = repr(text)
    return shown if len(shown) <= length else f"{shown[:length]}..."


def is_utf8(name: str) -> bool:
    """Return False for a file name with bytes that are not UTF-8."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)
