"""Text, blocks and errors in the form that gradio shows them as they are."""

from __future__ import annotations

import html
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gradio as gr

from clipvid import ClipvidError
from clipvid.data.reader import VideoError
from clipvid.evaluation.report import Block, render_block
from clipvid.files import printable


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Show errors meant for users as one line. Others are shown as `Error`, with a traceback in the terminal."""
    try:
        yield
    except VideoError as error:
        reason = str(error) if error.reason is None else f"{Path(error.path).name}: {error.reason}"
        raise gr.Error(escaped(reason), print_exception=False) from None
    except ClipvidError as error:
        raise gr.Error(escaped(error), print_exception=False) from None
    except OSError as error:
        reason = f"a file could not be written or read: {error.strerror or error}"
        raise gr.Error(escaped(reason), print_exception=True) from None


def escaped(text: object) -> str:
    """Return text that HTML shows as it is."""
    return html.escape(printable(text))


def html_of(*blocks: Block) -> str:
    """Return the HTML of blocks. gradio fills places in braces, which names may contain, so braces are escaped."""
    return "".join(map(render_block, blocks)).replace("{", "&#123;").replace("}", "&#125;")
