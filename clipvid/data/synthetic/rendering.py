"""Random scenes of the synthetic world and their rendering: a textured shape over clutter.

Shapes are signed distance functions in object coordinates: (u, v) with u to the right, v downwards and the object
inside the unit circle. Positions and radii are in frame widths. Angles are in radians and clockwise on screen. Shape
legend: T frames, H = W = image size in pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (222, 30, 34),
    "orange": (245, 132, 16),
    "yellow": (246, 220, 38),
    "green": (34, 168, 52),
    "blue": (36, 66, 226),
    "purple": (138, 40, 176),
    "pink": (250, 120, 190),
    "white": (244, 244, 240),
}
MOTIONS: dict[str, tuple[str, str]] = {
    "horizontal": ("moving left", "moving right"),
    "vertical": ("moving up", "moving down"),
    "rotation": ("turning clockwise", "turning anticlockwise"),
    "depth": ("coming closer", "going away"),
    "colour": ("turning blue", "turning red"),
}
TEXTURES = ("plain", "striped", "checked", "dotted")
_CLUTTER_SIZES = {  # half lengths in frame widths: minimum and maximum of (long, short)
    "rectangle": ((0.06, 0.05), (0.22, 0.12)),
    "line": ((0.2, 0.007), (0.6, 0.014)),
    "blob": ((0.025, 0.02), (0.06, 0.045)),
}
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(frozen=True)
class Scene:
    """Clip before rendering: a still background, an object, and the object's state in each frame.

    Attributes:
        shape: Name of the object's shape.
        texture: Name of the object's texture.
        texture_phase: [3], turn and shift of the texture.
        base: Height in object coordinates below which the object is darkened, which makes its orientation visible.
        background: [3, H, W] in 0..255.
        x: [T], center of the object in frame widths.
        y: [T], center of the object in frame widths.
        radius: [T], in frame widths.
        angle: [T], in radians clockwise from upright.
        color: [T, 3], color of the object in 0..255.
        color_name: Name of the color in each frame.
        light: [T], brightness of the whole frame, about 1.
    """

    shape: str
    texture: str
    texture_phase: np.ndarray
    base: float
    background: np.ndarray
    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    angle: np.ndarray
    color: np.ndarray
    color_name: tuple[str, ...]
    light: np.ndarray


def _progress(rng: np.random.Generator, num_frames: int, wobble: float) -> np.ndarray:
    """Return a monotone path from 0 to 1, [T], with a random smooth speed of 1 ± `wobble` times the mean."""
    middle = (np.arange(num_frames - 1) + 0.5) / (num_frames - 1)
    speed = 1 + wobble * np.sin(2 * np.pi * (rng.uniform(0.4, 1.2) * middle + rng.random()))
    return np.concatenate([[0.0], np.cumsum(speed) / speed.sum()])


def _wander(rng: np.random.Generator, num_frames: int, drift: float, jitter: float) -> np.ndarray:
    """Return a slight drift [T], up to `drift` over the clip in either direction, with jitter in every frame."""
    line = rng.uniform(-drift, drift) * np.linspace(-0.5, 0.5, num_frames)
    return line + jitter * rng.standard_normal(num_frames)


def draw_scene(rng: np.random.Generator, name: str, pair: str, num_frames: int, size: int) -> Scene:
    """Draw appearance and path of one canonical clip: object `name` in the first motion of `pair`."""
    x = rng.uniform(0.33, 0.67) + _wander(rng, num_frames, 0.07, 0.003)
    y = rng.uniform(0.33, 0.67) + _wander(rng, num_frames, 0.07, 0.003)
    radius = rng.uniform(0.15, 0.225) * np.exp(_wander(rng, num_frames, 0.12, 0.008))
    angle = np.deg2rad(rng.uniform(-12, 12) + _wander(rng, num_frames, 14, 1.0))
    shade = np.ones(num_frames)
    names = (str(rng.choice(list(COLORS))),) * num_frames
    if pair in ("horizontal", "vertical"):
        travel = rng.uniform(0.45, 0.62)
        path = rng.uniform(0.16 + travel, 0.84) - travel * _progress(rng, num_frames, 0.35)
        moved = path + _wander(rng, num_frames, 0.0, 0.003)
        x, y = (moved, y) if pair == "horizontal" else (x, moved)
    elif pair == "rotation":
        total = np.deg2rad(rng.uniform(180, 240))
        angle += rng.uniform(0, 2 * np.pi) + total * _progress(rng, num_frames, 0.1)
    elif pair == "depth":
        growth = np.log(rng.uniform(1.9, 2.3)) * _progress(rng, num_frames, 0.35)
        radius *= rng.uniform(0.118, 0.138) / radius.mean() * np.exp(growth)
    else:
        first_half = np.arange(num_frames) < num_frames / 2
        names = tuple("red" if first else "blue" for first in first_half)
        shade = 0.86 + 0.14 * np.sin(np.arange(num_frames) * np.pi / 2 + rng.uniform(0, 2 * np.pi))
    color = np.array([COLORS[name] for name in names]) + rng.uniform(-12, 12, 3)
    return Scene(
        shape=name,
        texture=str(rng.choice(TEXTURES)),
        texture_phase=rng.uniform(0, 2 * np.pi, 3).astype(np.float32),
        base=rng.uniform(0.2, 0.34),
        background=draw_background(rng, size),
        x=x.astype(np.float32),
        y=y.astype(np.float32),
        radius=radius.astype(np.float32),
        angle=angle.astype(np.float32),
        color=(np.clip(color, 0, 255) * shade[:, None]).astype(np.float32),
        color_name=names,
        light=(1 + _wander(rng, num_frames, 0.1, 0.006)).astype(np.float32),
    )


def _segment(u: np.ndarray, v: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return the squared distance to the segment from `start` to `end`, two points [2] in object coordinates."""
    du, dv = end - start
    pu, pv = u - start[0], v - start[1]
    along = np.clip((pu * du + pv * dv) * np.float32(1 / (du * du + dv * dv)), 0, 1)
    return (pu - along * du) ** 2 + (pv - along * dv) ** 2


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return the distance to a star with five points, one of them up.

    The plane is folded into half a point, where the distance is that to one edge.
    """
    sector = np.float32(2 * np.pi / 5)
    radius = np.hypot(u, v)
    theta = np.arctan2(u, -v)
    theta = np.abs(theta - sector * np.round(theta / sector))
    a, b = radius * np.sin(theta), radius * np.cos(theta)
    tip = np.array([0.0, 1.05], dtype=np.float32)
    notch = 0.47 * np.array([np.sin(np.pi / 5), np.cos(np.pi / 5)], dtype=np.float32)
    du, dv = notch - tip
    outside = np.sign(du * (b - tip[1]) - dv * (a - tip[0]))
    return outside * np.sqrt(_segment(a, b, tip, notch))


def _box(u: np.ndarray, v: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    a, b = np.abs(u) - np.float32(half_width), np.abs(v) - np.float32(half_height)
    return np.hypot(np.maximum(a, 0), np.maximum(b, 0)) + np.minimum(np.maximum(a, b), 0)


def _heart(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return the distance to a square on its corner with a half disc on each of its two upper sides."""
    u, v = np.abs(u), v + np.float32(0.05)
    side = np.float32(0.58)
    a, b = (u + v) * np.float32(0.7071), (u - v) * np.float32(0.7071)
    square = np.maximum(np.abs(a), np.abs(b)) - side
    return np.minimum(square, np.hypot(a, b - side) - side)


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(v - np.float32(0.62), np.float32(0.866) * np.abs(u) - np.float32(0.5) * (v + 1))


def _moon(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.hypot(u, v) - 0.98, 0.8 - np.hypot(u - np.float32(0.5), v))


SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "ball": lambda u, v: np.hypot(u, v) - np.float32(0.96),
    "box": lambda u, v: _box(u, v, 0.8, 0.8),
    "star": _star,
    "cross": lambda u, v: np.minimum(_box(u, v, 1.0, 0.32), _box(u, v, 0.32, 1.0)),
    "ring": lambda u, v: np.abs(np.hypot(u, v) - np.float32(0.7)) - np.float32(0.27),
    "heart": _heart,
    "moon": _moon,
    "triangle": _triangle,
}


def _texture(name: str, u: np.ndarray, v: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """Return the share of the second tone, 0..1, at each point; `phase` [3] = (turn, shift, shift) in radians."""
    if name == "plain":
        return np.zeros_like(u)
    turn, first, second = phase
    cos, sin = np.cos(turn), np.sin(turn)
    a, b = cos * u + sin * v, cos * v - sin * u
    if name == "striped":
        return np.clip(0.5 + 2.5 * np.sin(9.5 * a + first), 0, 1)
    if name == "checked":
        return np.clip(0.5 + 5 * np.sin(6.5 * a + first) * np.sin(6.5 * b + second), 0, 1)
    return np.clip(2.5 * (np.cos(8 * a + first) + np.cos(8 * b + second) - 0.6), 0, 1)


def _second_tone(color: np.ndarray) -> np.ndarray:
    """Return a darker tone for light colors and a lighter one for dark colors, [T, 3]."""
    light = (color @ _LUMA)[:, None] > 100
    return np.where(light, 0.58 * color, 0.55 * color + 0.45 * 255).astype(np.float32)


def draw_frames(scene: Scene, frames: np.ndarray, rng: np.random.Generator, noise: float = 2.0) -> np.ndarray:
    """Draw the scene at the frame numbers `frames` [N], as uint8 RGB [N, H, W, 3].

    `noise` is the standard deviation of the sensor noise on the scale 0..255, drawn from `rng` for each frame.
    """
    size = scene.background.shape[-1]
    image = np.repeat(scene.background[None], len(frames), axis=0)
    _draw_object(scene, frames, image)
    image *= scene.light[frames, None, None, None]
    image += np.float32(noise) * rng.standard_normal(image.shape, dtype=np.float32)
    pixels = np.clip(image + np.float32(0.5), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels.reshape(-1, 3, size, size).transpose(0, 2, 3, 1))


def _draw_object(scene: Scene, frames: np.ndarray, image: np.ndarray) -> None:
    """Draw the object over `image` [N, 3, H, W], in place, within a square window [P, P] around its center."""
    size = image.shape[-1]
    x, y, radius = (a[frames] * np.float32(size) for a in (scene.x, scene.y, scene.radius))
    side = min(size, int(np.ceil(2.3 * radius.max())) + 4)
    left, top = (np.clip(np.round(c - side / 2).astype(int), 0, size - side) for c in (x, y))
    x, y, radius, angle = (a[:, None, None] for a in (x, y, radius, scene.angle[frames]))
    centres = np.arange(side, dtype=np.float32) + np.float32(0.5)
    dx = (left[:, None, None].astype(np.float32) + centres[None, None, :] - x) / radius
    dy = (top[:, None, None].astype(np.float32) + centres[None, :, None] - y) / radius
    cos, sin = np.cos(angle), np.sin(angle)
    u, v = cos * dx + sin * dy, cos * dy - sin * dx

    inside = -SHAPES[scene.shape](u, v) * radius
    color = scene.color[frames]
    body, tone = color[..., None, None], _second_tone(color)[..., None, None]
    drawn = body + _texture(scene.texture, u, v, scene.texture_phase)[:, None] * (tone - body)
    below = np.clip((v - np.float32(scene.base)) * radius + np.float32(0.5), 0, 1)
    drawn *= 1 - np.float32(0.72) * below[:, None]
    outline = np.float32(15 if scene.background.mean() > 105 else 245)
    drawn += np.clip(np.float32(1.7) - inside, 0, 1)[:, None] * np.float32(0.85) * (outline - drawn)
    alpha = np.clip(inside + np.float32(0.5), 0, 1)[:, None]
    for n, (row, column) in enumerate(zip(top, left, strict=True)):
        window = image[n, :, row : row + side, column : column + side]
        window += alpha[n] * (drawn[n] - window)


def _enlarge(grid: np.ndarray, size: int) -> np.ndarray:
    """Enlarge [G, G] bilinearly to [size, size], with aligned corners."""
    place = np.linspace(0, grid.shape[0] - 1, size, dtype=np.float32)
    weights = np.maximum(0, 1 - np.abs(place[:, None] - np.arange(grid.shape[0], dtype=np.float32)))
    return weights @ grid @ weights.T


def _muted(rng: np.random.Generator, luma: float, tint: float) -> np.ndarray:
    """Draw a color of little saturation around the gray level `luma`: [3, 1, 1] in 0..255."""
    return (luma + rng.uniform(-tint, tint, (3, 1, 1))).astype(np.float32)


def draw_background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw a muted background, dark or light, float32 [3, H, W]: color gradients, a faint grating, clutter."""
    luma = rng.uniform(48, 82) if rng.random() < 0.5 else rng.uniform(128, 168)
    blend = _enlarge(rng.random((5, 5), dtype=np.float32), size)
    first, second = _muted(rng, luma, 22), _muted(rng, luma + rng.uniform(-20, 20), 22)
    image = second + blend * (first - second)
    centres = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    wave_x, wave_y = rng.uniform(-70, 70, 2).astype(np.float32)
    phase, strength = np.float32(rng.uniform(0, 2 * np.pi)), np.float32(rng.uniform(2, 7))
    image += strength * np.sin(wave_x * centres[None, :] + wave_y * centres[:, None] + phase)
    for _ in range(rng.integers(7, 13)):
        _add_clutter(rng, image, luma)
    return np.clip(image, 8, 215)


def _add_clutter(rng: np.random.Generator, image: np.ndarray, luma: float) -> None:
    """Draw one muted rectangle, line or small blob over `image` [3, H, W], in place."""
    size = image.shape[-1]
    kind = ("rectangle", "line", "blob")[rng.integers(3)]
    (long_from, short_from), (long_to, short_to) = _CLUTTER_SIZES[kind]
    x, y, long, short = size * rng.uniform([0, 0, long_from, short_from], [1, 1, long_to, short_to])
    turn = rng.uniform(0, np.pi)
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    reach = np.hypot(long, short) + 1
    rows, columns = (slice(max(0, int(c - reach)), int(c + reach) + 1) for c in (y, x))
    centres = np.arange(size, dtype=np.float32) + np.float32(0.5)
    dx, dy = centres[None, columns] - np.float32(x), centres[rows, None] - np.float32(y)
    a, b = cos * dx + sin * dy, cos * dy - sin * dx
    if kind == "blob":
        inside = np.float32(short) * (1 - np.hypot(a / np.float32(long), b / np.float32(short)))
    else:
        inside = -_box(a, b, float(long), float(short))
    alpha = np.clip(inside + np.float32(0.5), 0, 1) * np.float32(rng.uniform(0.6, 0.95))
    color = _muted(rng, luma + rng.uniform(18, 42) * rng.choice([-1, 1]), 26)
    window = image[:, rows, columns]
    window += alpha * (color - window)
