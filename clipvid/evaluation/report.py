"""A report: one self-contained HTML page of typed sections, rendered by the templates of this package.

Every text is escaped by jinja2's autoescape. A template asks for no file and no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from clipvid.evaluation.charts import Picture
from clipvid.evaluation.clips import ClipStrip
from clipvid.evaluation.tables import Figure, Table
from clipvid.files import printable, write_bytes


@dataclass(frozen=True)
class LegendEntry:
    """Entry of a legend: a name with the color and dash of its line."""

    name: str
    color: str
    dash: str


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side, with the legend that they share."""

    kind: ClassVar[str] = "pictures"
    pictures: Sequence[Picture]
    legend: Sequence[LegendEntry] = ()


@dataclass(frozen=True)
class NamedBar:
    """A figure with its bar and the name of what it measures."""

    name: str
    figure: Figure


@dataclass(frozen=True)
class BarCards:
    """Cards with a heading and bars each."""

    kind: ClassVar[str] = "bar_cards"
    cards: dict[str, list[NamedBar]]


@dataclass(frozen=True)
class Clips:
    """Clips that play, with the answers of each model."""

    kind: ClassVar[str] = "clips"
    clips: Sequence[ClipStrip]


@dataclass(frozen=True)
class Definitions:
    """Terms with their values."""

    kind: ClassVar[str] = "definitions"
    values: dict[str, str]


@dataclass(frozen=True)
class Listing:
    """A list of names; a long one is folded."""

    kind: ClassVar[str] = "listing"
    names: Sequence[str]


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of text.

    Attributes:
        text: the text.
        lead: stands out before it; empty for none.
        code: a command or the like after it; empty for none.
    """

    kind: ClassVar[str] = "paragraph"
    text: str
    lead: str = ""
    code: str = ""


@dataclass(frozen=True)
class FramePicture:
    """Picture of one frame of a clip.

    Attributes:
        uri: the image as a `data:` address.
        alt: what it shows, in words.
        numbers: lines below it.
    """

    uri: str
    alt: str
    numbers: Sequence[str]


@dataclass(frozen=True)
class ColorKey:
    """Entry of the legend of pictures: a name with a color, or with a scale of several colors."""

    name: str
    colors: Sequence[str]


@dataclass(frozen=True)
class FrameStrip:
    """Frames of a clip in their order, with things drawn over them.

    Attributes:
        pictures: one per frame.
        heading: empty for none.
        note: how to read it; empty for none.
        legend: meaning of the colors.
    """

    kind: ClassVar[str] = "frame_strip"
    pictures: Sequence[FramePicture]
    heading: str = ""
    note: str = ""
    legend: Sequence[ColorKey] = ()


@dataclass(frozen=True)
class Thumbnail:
    """Part of a video as a small picture that plays, with a link.

    Attributes:
        title: the most important text, below the picture.
        lines: texts below the title.
        link: address of the video; empty for none.
        frames: the frames side by side as a `data:` address; empty for none.
        count: number of the frames.
        shape: width and height of a frame in pixels.
    """

    title: str
    lines: Sequence[str]
    link: str = ""
    frames: str = ""
    count: int = 1
    shape: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Thumbnails:
    """Small pictures that play, in a grid."""

    kind: ClassVar[str] = "thumbnails"
    thumbnails: Sequence[Thumbnail]


@dataclass(frozen=True)
class Folded:
    """Blocks that are shown when the reader opens them."""

    kind: ClassVar[str] = "folded"
    summary: str
    blocks: Sequence[Block]


Block: TypeAlias = (
    Table | Pictures | BarCards | Clips | Definitions | Listing | Paragraph | FrameStrip | Thumbnails | Folded
)


@dataclass(frozen=True)
class Section:
    """A section of a page.

    Attributes:
        heading: its title.
        note: how to read it.
        blocks: its content. A section without content is left out.
    """

    heading: str
    note: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A whole report.

    Attributes:
        title: heading of the page.
        introduction: paragraphs below the title.
        sections: in their order.
    """

    title: str
    introduction: Sequence[str]
    sections: Sequence[Section]


def write_page(path: Path, page: Page) -> None:
    """Write a page as one HTML file that needs nothing else."""
    html = _environment().get_template("page.html.j2").render(page=page)
    write_bytes(path, html.encode())


def render_block(block: Block) -> str:
    """Return the HTML of one block, without styles, for pages of another program."""
    macros: Any = _environment().get_template("blocks.html.j2").module
    return str(macros.render(block))


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("clipvid.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    environment.filters["percent"] = _percent
    return environment


def _finalize(value: Any) -> Any:
    """Return printable text, so that no control character or broken letter reaches the page."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else printable(value)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"
