"""mkdocs hooks: the CLI reference, tables from stored figures, block figures, and equations as MathML."""

from __future__ import annotations

import html
import re
import sys
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))

from cli import cli_reference
from figures import FIGURES, draw
from tables import render

INCLUDE = re.compile(r"^<!-- (table|figure): ([\w.]+) -->$", re.MULTILINE)
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add the page that is generated from the parsers."""
    files.append(File.generated(config, "reference/cli.md", content=cli_reference()))
    return files


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Replace `<!-- table: name -->` and `<!-- figure: name -->` by stored tables and figures."""
    return INCLUDE.sub(lambda found: included(found[1], found[2]), markdown)


def on_page_content(content: str, **kwargs: Any) -> str:
    """Convert TeX to MathML, which browsers show without scripts."""
    return EQUATION.sub(lambda found: equation(html.unescape(found[2]), found[1] == "div"), content)


def included(kind: str, name: str) -> str:
    """Return the Markdown or SVG of a table or a figure."""
    return render(name) if kind == "table" else draw(FIGURES[name])


def equation(tex: str, display: bool) -> str:
    """Return the MathML of an equation."""
    if not display:
        return convert(tex)
    return f'<div class="equation">{convert(tex, display="block")}</div>'
