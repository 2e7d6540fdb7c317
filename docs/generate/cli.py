"""Page of the command line, generated from the parsers."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any
from unittest.mock import patch

from jsonargparse import ArgumentParser

from clipvid.commands import VERBS
from clipvid.commands.benchmark import SUBJECTS

SCRIPTS = {"finetune", "pretrain", "pretrain-clip"}
INTRODUCTION = """# Command line

`clipvid <verb> [options]` and `python scripts/<verb>.py [options]` are the same command.
With several processes, use `accelerate launch scripts/<verb>.py` or `torchrun scripts/<verb>.py`.

- A verb with `--config` reads YAML files. Later options win, and unknown options are refused.
- `--print_config` prints the complete config and exits.
- `--plugin MODULE` imports a module or a Python file that adds adapters, heads or sources. It works with every verb.
- Exit codes: 0 success, 1 an error meant for users, 2 wrong options, 75 preempted (the same command resumes), 130
  Ctrl-C, 141 the reader of the output has left.

This page is generated from the parsers.
"""


class _Captured(Exception):
    """The parser that a verb was about to use."""

    def __init__(self, parser: ArgumentParser) -> None:
        self.parser = parser


def cli_reference() -> str:
    """Return the page as Markdown."""
    parts = [INTRODUCTION]
    for verb, purpose in VERBS.items():
        if verb == "benchmark":
            parts.append(f"## clipvid benchmark\n\n{sentence(purpose)}\n")
            parts += [section(f"benchmark {subject}", "", level=3) for subject in SUBJECTS]
        else:
            parts.append(section(verb, purpose))
    return "\n".join(parts)


def parser_of(command: str) -> ArgumentParser:
    """Return the parser of a verb, or of `benchmark <subject>`."""
    verb, *rest = command.split()
    main = import_module(f"clipvid.commands.{verb.replace('-', '_')}").main

    def capture(parser: ArgumentParser, *args: Any, **kwargs: Any) -> None:
        raise _Captured(parser)

    with patch.object(ArgumentParser, "parse_args", capture):
        try:
            main(rest)
        except _Captured as captured:
            return captured.parser
    raise RuntimeError(f"clipvid {command} parses nothing")


def section(command: str, purpose: str, level: int = 2) -> str:
    """Return the section of one command: its purpose, and a table for each group of options."""
    parser = parser_of(command)
    lines = [f"{'#' * level} clipvid {command}", "", sentence(purpose or parser.description or ""), ""]
    for group in parser._action_groups:
        rows = list(option_rows(group))
        if not rows:
            continue
        title = summary(group)
        lines += [f"**{title}**", ""] if title else []
        lines += ["| option | type | default | meaning |", "|---|---|---|---|", *rows, ""]
    return "\n".join(lines)


def option_rows(group: Any) -> Iterator[str]:
    """Yield a table row for each option of a group."""
    for action in group._group_actions:
        name = action.option_strings[0] if action.option_strings else action.dest
        if action.help == argparse.SUPPRESS or name in ("--help", "-h", "--print_config") or name.endswith(".help"):
            continue
        if type(action).__name__ == "_ActionConfigLoad":  # the same options as one mapping
            continue
        default = "" if action.default in (None, argparse.SUPPRESS) else f"`{shown(action.default)}`"
        if getattr(action, "required", False):
            default = "required"
        yield f"| `{name}` | {type_name(action)} | {default} | {meaning(action)} |"


def type_name(action: Any) -> str:
    """Return the type of an option as code."""
    hint = getattr(action, "_typehint", None) or getattr(action, "type", None)
    if action.choices:
        return f"`{' | '.join(map(str, action.choices))}`".replace("|", "\\|")
    if hint is None:
        return "flag" if action.nargs == 0 else "path" if action.dest == "config" else ""
    text = hint.__name__ if inspect.isclass(hint) and not hasattr(hint, "__args__") else str(hint)
    text = re.sub(r"\b(?:typing|pathlib|clipvid(?:\.\w+)*)\.", "", text).replace("NoneType", "None")
    return f"`{text}`".replace("|", "\\|")


def shown(value: Any) -> str:
    """Return a default as it would be typed."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return (text if len(text) <= 60 else f"{text[:57]}...").replace("|", "\\|")


def meaning(action: Any) -> str:
    """Return the help text of an option without type and default."""
    text = re.sub(r"\s*\((?:required, )?type: .*$", "", action.help or "", flags=re.DOTALL)
    text = text.replace("%(default)s", str(action.default)).replace("%%", "%")
    return " ".join(text.split()).replace("|", "\\|")


def summary(group: Any) -> str:
    """Return the first paragraph of the docstring behind a group, or nothing for the general ones."""
    title = (group.title or "").strip().rstrip(":")
    return "" if title in ("options", "positional arguments", "optional arguments") else title.split("\n\n")[0]


def sentence(text: str) -> str:
    """Return the text as a sentence."""
    text = text.strip().rstrip(".")
    return f"{text[:1].upper()}{text[1:]}." if text else ""
