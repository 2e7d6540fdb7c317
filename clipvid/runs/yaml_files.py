"""YAML of strangers, checked before it becomes values: one clear error instead of a wait or a full memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from clipvid import InputError
from clipvid.files import check_regular, one_line

MAX_BYTES = 2**20
MAX_VALUES = 10_000  # with those that anchors repeat
MAX_DEPTH = 32
MAX_DIGITS = 100  # of a whole number
_WHOLE_NUMBER = "tag:yaml.org,2002:int"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml_text(path: Path) -> str:
    """Return the text of a YAML file, checked as `check_yaml` does.

    Raises:
        InputError: no regular file, more than `MAX_BYTES` bytes, or another encoding than UTF-8.
        FileNotFoundError: The file does not exist.
    """
    check_regular(path, "config")
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path} has {path.stat().st_size} bytes; expected at most {MAX_BYTES}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from None
    check_yaml(text, str(path))
    return text


def check_yaml(text: str, owner: str) -> None:
    """Raise InputError for text that is not YAML, repeats a key, is nested too deep, or has too many values.

    Values that an anchor repeats count each time: a few lines can stand for billions.

    Args:
        text: of one document.
        owner: file, for messages.
    """
    try:
        root = yaml.compose(text, _LOADER)
    except RecursionError:
        raise InputError(f"{owner}: its values are nested too deep; expected at most {MAX_DEPTH} levels") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f":{mark.line + 1}"
        raise InputError(f"{owner}{line}: not YAML ({one_line(getattr(error, 'problem', None) or error)})") from None
    if root is not None:
        _count(root, owner, {}, 0)


def _count(node: yaml.Node, owner: str, counts: dict[int, int], depth: int) -> int:
    """Return the number of values in a node; `counts` holds those of nodes seen before, 0 while they are counted."""
    if id(node) in counts:
        if not counts[id(node)]:
            raise InputError(f"{owner}:{node.start_mark.line + 1}: an anchor is used inside itself")
        return counts[id(node)]
    if depth > MAX_DEPTH:
        raise InputError(f"{owner}: its values are nested too deep; expected at most {MAX_DEPTH} levels")
    if node.tag == _WHOLE_NUMBER and len(node.value) > MAX_DIGITS:
        raise InputError(f"{owner}:{node.start_mark.line + 1}: a number of over {MAX_DIGITS} digits; correct it")
    counts[id(node)] = 0
    total = 1
    for child in _children(node, owner):
        total += _count(child, owner, counts, depth + 1)
        if total > MAX_VALUES:
            raise InputError(f"{owner}: it has over {MAX_VALUES} values, with those that anchors repeat; shorten it")
    counts[id(node)] = total
    return total


def _children(node: yaml.Node, owner: str) -> Iterator[yaml.Node]:
    """Yield the nodes inside a node. Raise InputError for a key that appears twice."""
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        keys = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in keys:
                    line = key.start_mark.line + 1
                    raise InputError(f"{owner}:{line}: the key {key.value[:40]!r} appears twice; leave one of them out")
                keys.add((key.tag, key.value))
            yield key
            yield value
