"""Page of the moments that answer a query, with thumbnails that play.

Shapes: T frames.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from clipvid.data.reader import VideoError, open_video
from clipvid.evaluation.report import Block, Definitions, Page, Paragraph, Section, Thumbnail, Thumbnails, write_page
from clipvid.files import cut
from clipvid.inference.search.index import Index, Moment
from clipvid.inference.thumbnails import small_frames, strip_uri

_FRAMES, _HEIGHT, _WIDEST = 8, 120, 320  # of a thumbnail; pixels
_SHOWN = 200  # letters of a name or a query


def write_search_page(path: Path, index: Index, moments: Sequence[Moment], query: str) -> None:
    """Write the moments as one HTML file, which links to the videos by relative paths.

    Args:
        path: The file.
        index: The index.
        moments: Best first.
        query: The query in words.
    """
    blocks = [moments_block(index, moments, path)]
    settings = index.settings
    details = {
        "videos": f"{len(index.videos)} in {cut(settings.folder, _SHOWN)}",
        "windows": f"{len(index)} of {settings.window:g} s, {settings.hop:g} s apart",
        "model": settings.model or "a model in memory",
    }
    introduction = "The score is the cosine between video and query. It orders the moments; it is not a probability."
    sections = [Section("Moments", "", blocks), Section("Details", "", [Definitions(details)])]
    write_page(path, Page(cut(query, _SHOWN), [introduction], sections))


def span(moment: Moment) -> str:
    """Return start and end of a moment as `0:03.0 - 0:05.0`."""
    return " - ".join(f"{int(tenths // 600)}:{tenths % 600 / 10:04.1f}" for tenths in _tenths(moment))


def _tenths(moment: Moment) -> list[int]:
    return [round(10 * seconds) for seconds in (moment.start, moment.end)]


def moments_block(index: Index, moments: Sequence[Moment], page: Path | None = None) -> Block:
    """Return moments as thumbnails that play.

    Args:
        index: The index.
        moments: Best first.
        page: File of the page. The thumbnails then link to the videos.
    """
    if not moments:
        return Paragraph("No moment fits the query.")
    return Thumbnails([_thumbnail(moment, number, page, index) for number, moment in enumerate(moments, 1)])


def _thumbnail(moment: Moment, number: int, page: Path | None, index: Index) -> Thumbnail:
    name = os.path.relpath(moment.video, index.settings.folder)
    lines = [cut(name, _SHOWN), span(moment), f"score {moment.score:.3f}"]
    try:
        frames = read_thumbnail(moment)
    except VideoError as error:
        return Thumbnail(f"{number}", [*lines, f"not readable any more: {error.reason}"])
    link = "" if page is None else video_link(moment, page)
    return Thumbnail(f"{number}", lines, link, strip_uri(frames), len(frames), frames[0].size)


def read_thumbnail(moment: Moment) -> list[Image.Image]:
    """Return small frames that are spread over a moment.

    Raises:
        VideoError: The video has gone, or cannot be read.
    """
    with open_video(moment.video) as video:
        return small_frames(video, video.frames_between(moment.start, moment.end), _FRAMES, _HEIGHT, _WIDEST)


def video_link(moment: Moment, page: Path) -> str:
    """Return the address of a moment's video, relative to a page, with the time at which a browser starts."""
    try:
        relative = os.path.relpath(moment.video, page.absolute().parent)
        address = quote(os.fsencode(relative.replace(os.sep, "/")))
    except ValueError:  # another drive on Windows
        address = Path(moment.video).as_uri()
    return f"{address}#t={moment.start:.2f},{moment.end:.2f}"
