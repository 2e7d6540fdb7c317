"""Folder of short clips whose class is their color, for the tests of teaching."""

from pathlib import Path

import av
import numpy as np

COLORS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}
LABELS = ["walking", "running", 'it\'s "jumping", high']
CLASS_OF_COLOR = dict(zip(COLORS, LABELS, strict=True))


def write_clip_of_color(path: Path, color: str, seed: int) -> None:
    """Write six frames of one color with noise, and a dark square that moves."""
    generator = np.random.default_rng(seed)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=10, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number in range(6):
            picture = np.array(COLORS[color]) + generator.integers(-40, 41, (64, 96, 3))
            picture[20:40, 10 + 10 * number : 20 + 10 * number] = 0
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture.clip(0, 255).astype(np.uint8), format="rgb24")))
        out.mux(stream.encode())


def write_clips(folder: Path, per_color: int) -> Path:
    """Write clips of all colors, named by color and number, half of them in a subfolder."""
    (folder / "more").mkdir(parents=True)
    for place, color in enumerate(COLORS):
        for number in range(per_color):
            parent = folder / "more" if number % 2 else folder
            write_clip_of_color(parent / f"{color} {number}.mp4", color, 100 * place + number)
    return folder


def true_label(clip: str) -> str:
    """Return the class of a clip by its name."""
    return CLASS_OF_COLOR[Path(clip).name.split()[0]]
