"""Pictures of frames with marks over them.

Shapes: T frames, H x W patches, S image side, Z side of a picture in pixels.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from PIL import Image, ImageDraw
from torch import Tensor

from clipvid.adapters.marks import Arrows, HeatMap, Points, Tracks
from clipvid.evaluation.clips import data_uri

POINT_COLORS = ("#ff8c1a", "#1fd1c1")
TRACK_COLORS = ("#ff8c1a", "#1fd1c1", "#ff5fa2", "#b6e34b", "#8ea2ff", "#ffe14d")
ARROW_COLOR = "#ffe14d"
MAX_TRACKS, MAX_ARROWS = 6, 12  # of a frame; more cannot be followed
_SIDE = 224  # the shorter side of a picture in pixels
_SMOOTH = 2  # lines are drawn at this multiple and reduced


def enlarge(frames: Tensor) -> list[Image.Image]:
    """Return frames uint8 [T, 3, H, W] as pictures whose shorter side is at least 224 pixels, with even sides."""
    height, width = frames.shape[-2:]
    scale = max(1.0, _SIDE / min(height, width))
    size = 2 * round(width * scale / 2), 2 * round(height * scale / 2)
    pictures = [Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy()) for frame in frames.cpu()]
    return [picture.resize(size, Image.Resampling.BICUBIC) for picture in pictures]


def draw_heat(frames: Tensor, values: Tensor) -> list[Image.Image]:
    """Draw values [T, H, W] over frames [T, 3, S, S]: gray where they are 0, then red to yellow at their maximum."""
    pictures = enlarge(frames)
    scaled = values.float().clamp(min=0) / values.max().clamp(min=1e-12)
    size = pictures[0].height, pictures[0].width
    heat = F.interpolate(scaled[:, None], size, mode="bicubic").clamp(0, 1)[:, 0].numpy()
    drawn = []
    for picture, value in zip(pictures, heat, strict=True):
        gray = np.asarray(picture.convert("L"), dtype=np.float32)[..., None] * 0.8
        color = colormaps["inferno"](0.3 + 0.7 * value)[..., :3].astype(np.float32) * 255
        weight = (0.9 * value**0.7)[..., None]
        drawn.append(Image.fromarray(((1 - weight) * gray + weight * color).round().astype(np.uint8)))
    return drawn


def draw_mark(frames: Tensor, mark: HeatMap | Points | Tracks | Arrows, relevance: Tensor) -> list[Image.Image]:
    """Draw a mark over frames [T, 3, S, S].

    Args:
        frames: The frames.
        mark: The mark. Of many tracks, only those through the most relevant patches are drawn.
        relevance: [T, H, W], which chooses the tracks.
    """
    if isinstance(mark, HeatMap):
        return draw_heat(frames, mark.values)
    pictures = enlarge(frames)
    size = pictures[0].size
    large = [picture.resize((_SMOOTH * size[0], _SMOOTH * size[1]), Image.Resampling.BICUBIC) for picture in pictures]
    if isinstance(mark, Points):
        _draw_points(large, mark)
    elif isinstance(mark, Tracks):
        _draw_tracks(large, mark, relevance)
    else:
        _draw_arrows(large, mark)
    return [picture.resize(size, Image.Resampling.LANCZOS) for picture in large]


def _draw_points(pictures: Sequence[Image.Image], mark: Points) -> None:
    for frame, place, kind in zip(mark.frames.tolist(), mark.positions, mark.kinds.tolist(), strict=True):
        picture = pictures[frame]
        radius = picture.width / (26 if kind == 0 else 38)  # so that two at one place are both seen
        _dot(picture, _pixels(picture, place), radius, POINT_COLORS[kind % len(POINT_COLORS)])


def _draw_tracks(pictures: Sequence[Image.Image], mark: Tracks, relevance: Tensor) -> None:
    tracks = mark.positions[relevant_tracks(mark.positions, relevance)][: len(TRACK_COLORS)]
    for color, path in zip(TRACK_COLORS[: len(tracks)], tracks, strict=True):
        for frame, picture in enumerate(pictures):
            points = [_pixels(picture, place) for place in path]
            draw, width = ImageDraw.Draw(picture), max(2, picture.width // 120)
            draw.line(points, fill="#0008", width=width + 4, joint="curve")
            draw.line(points, fill=color, width=width, joint="curve")
            _dot(picture, points[frame], picture.width / 34, color)


def relevant_tracks(positions: Tensor, relevance: Tensor) -> Tensor:
    """Return indices of the tracks [K, T, 2] through the highest relevance [T, H, W], the highest first."""
    grid = torch.tensor(relevance.shape[:0:-1])
    cells = (positions * grid).long().clamp(min=0).minimum(grid - 1)
    frames = torch.arange(relevance.shape[0])
    return relevance[frames, cells[..., 1], cells[..., 0]].sum(dim=1).argsort(descending=True)[:MAX_TRACKS]


def _draw_arrows(pictures: Sequence[Image.Image], mark: Arrows) -> None:
    largest = float(mark.weights.max()) if len(mark.weights) else 0.0
    for frame, picture in enumerate(pictures):
        own = (mark.frames == frame).nonzero().flatten()
        for index in own[mark.weights[own].argsort(descending=True)[:MAX_ARROWS]].flip(0).tolist():
            strength = float(mark.weights[index]) / largest if largest > 0 else 0.0
            _arrow(picture, _pixels(picture, mark.starts[index]), _pixels(picture, mark.ends[index]), strength)


def _pixels(picture: Image.Image, place: Tensor) -> tuple[float, float]:
    return float(place[0]) * picture.width, float(place[1]) * picture.height


def _dot(picture: Image.Image, place: tuple[float, float], radius: float, color: str) -> None:
    x, y = place
    box = (x - radius, y - radius, x + radius, y + radius)
    ImageDraw.Draw(picture).ellipse(box, fill=color, outline="#10141d", width=max(2, round(radius / 4)))


def _arrow(picture: Image.Image, start: tuple[float, float], end: tuple[float, float], strength: float) -> None:
    draw, width = ImageDraw.Draw(picture), max(2, round(picture.width / 200 * (0.6 + 1.4 * strength)))
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = math.hypot(dx, dy)
    if length < width:
        draw.ellipse((start[0] - width, start[1] - width, start[0] + width, start[1] + width), fill=ARROW_COLOR)
        return
    draw.line([start, end], fill="#10141d", width=width + 3)
    draw.line([start, end], fill=ARROW_COLOR, width=width)
    head = min(3.5 * width, length)
    ux, uy = dx / length * head, dy / length * head
    corners = [end, (end[0] - ux - uy / 2, end[1] - uy + ux / 2), (end[0] - ux + uy / 2, end[1] - uy - ux / 2)]
    draw.polygon(corners, fill=ARROW_COLOR, outline="#10141d")


def picture_uri(picture: Image.Image) -> str:
    """Return a picture as a `data:` address of a JPEG."""
    target = io.BytesIO()
    picture.save(target, format="JPEG", quality=86)
    return data_uri(target.getvalue(), "jpeg")
