"""Synthetic video world: textured objects moving over clutter, as H.264 files, and captioned stills.

A class is an object and a motion. Motions form pairs that are the reverse of each other. Both motions of a pair share
one canonical distribution of clips, that of the first motion. A clip of the second motion is an independent canonical
clip with its frames reversed. The set of frames therefore has the same distribution for both, and models that ignore
order are at chance. This holds for all frames of the file. A reader that takes frames 0, 2, 4, ... of 16 shifts the two
motions apart by a frame, so sample symmetrically in time. The 24 frames of the default world give 8 segments of 3, each
with a middle.
"""

import itertools
import json
import os
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple, dataclass, fields, replace
from pathlib import Path

import numpy as np

from clipvid import InputError
from clipvid.data.synthetic.encoding import video_size, write_video
from clipvid.data.synthetic.rendering import MOTIONS, SHAPES, Scene, draw_frames, draw_scene
from clipvid.files import write_text

SPLITS = ("train", "val", "test")
WORLD_VERSION = 2  # increment when the pixels of a config change


@dataclass(frozen=True)
class WorldConfig:
    """Config of a world. Invalid values are refused on construction.

    `image_size` is in pixels (even, for 4:2:0 video), `fps` in frames per second, `*_per_class` in clips.
    """

    seed: int = 0
    image_size: int = 64
    num_frames: int = 24
    fps: int = 8
    objects: tuple[str, ...] = ("ball", "box", "star", "cross")
    motions: tuple[str, ...] = tuple(MOTIONS)
    train_per_class: int = 20
    val_per_class: int = 4
    test_per_class: int = 6

    def __post_init__(self) -> None:
        for field, allowed in (("objects", SHAPES), ("motions", MOTIONS)):
            names = tuple(getattr(self, field))
            object.__setattr__(self, field, names)
            if not names or len(set(names)) < len(names) or not set(names) <= set(allowed):
                raise InputError(f"{field}={names}: expected one or more different names of {tuple(allowed)}")
        smallest = {"image_size": 32, "num_frames": 2, "fps": 1, "seed": 0}
        for field, least in {**smallest, **{f"{split}_per_class": 0 for split in SPLITS}}.items():
            if getattr(self, field) < least:
                raise InputError(f"{field}={getattr(self, field)}: expected at least {least}")
        if self.image_size % 2:
            raise InputError(f"image_size={self.image_size}: expected an even number of pixels")


@dataclass(frozen=True)
class WorldClass:
    """Label: `pair` is the motion's pair, `partner` the id of the class with the reversed motion."""

    id: int
    name: str
    object: str
    motion: str
    pair: str
    partner: int

    @property
    def reverses(self) -> bool:
        """True for the second motion of a pair, whose clips are canonical clips played backwards."""
        return self.motion == MOTIONS[self.pair][1]


def world_classes(config: WorldConfig) -> list[WorldClass]:
    """Return all classes of the world in order of id. Partners are adjacent."""
    kinds = itertools.product(config.objects, config.motions, (0, 1))
    return [
        WorldClass(i, f"{name} {MOTIONS[pair][member]}", name, MOTIONS[pair][member], pair, i ^ 1)
        for i, (name, pair, member) in enumerate(kinds)
    ]


def _key(word: str) -> int:
    return zlib.crc32(word.encode())


def clip_stream(config: WorldConfig, label: WorldClass, split: str, index: int) -> np.random.Generator:
    """Return the random stream of one clip. It depends on seed and names, not on the rest of the world."""
    words = [_key(word) for word in (split, label.object, label.motion)]
    return np.random.default_rng([config.seed, *words, index])


def render_canonical(config: WorldConfig, name: str, pair: str, rng: np.random.Generator) -> np.ndarray:
    """Render a clip of object `name` in the first motion of `pair`, drawn from `rng`: uint8 RGB [T, H, W, 3]."""
    scene = draw_scene(rng, name, pair, config.num_frames, config.image_size)
    return draw_frames(scene, np.arange(config.num_frames), rng)


def render_clip(config: WorldConfig, class_id: int, split: str, index: int) -> np.ndarray:
    """Render clip `index` of a class in `split`, uint8 RGB [T, H, W, 3]. Independent of other clips."""
    label = world_classes(config)[class_id]
    frames = render_canonical(config, label.object, label.pair, clip_stream(config, label, split, index))
    return np.ascontiguousarray(frames[::-1]) if label.reverses else frames


def object_track(config: WorldConfig, class_id: int, split: str, index: int) -> np.ndarray:
    """Return the place of the object in each frame of `render_clip`: (x, y, radius) in frame widths, [T, 3]."""
    label = world_classes(config)[class_id]
    rng = clip_stream(config, label, split, index)
    scene = draw_scene(rng, label.object, label.pair, config.num_frames, config.image_size)
    track = np.stack([scene.x, scene.y, scene.radius], axis=1)
    return np.ascontiguousarray(track[::-1]) if label.reverses else track


def draw_still(config: WorldConfig, index: int, split: str) -> tuple[Scene, int, np.random.Generator]:
    """Return the scene of a still, the frame number to show, and the random stream for the rest.

    Objects in clips stay near the middle and mostly upright. Stills show them anywhere, a quarter at any angle.
    """
    rng = np.random.default_rng([config.seed, _key(split), _key("still"), index])
    name, pair = str(rng.choice(config.objects)), str(rng.choice(config.motions))
    frame = int(rng.integers(config.num_frames))
    scene = draw_scene(rng, name, pair, config.num_frames, config.image_size)
    margin = scene.radius[frame]
    x, y = (scene.x * 0 + rng.uniform(margin, 1 - margin) for _ in range(2))
    angle = scene.angle + rng.uniform(-np.pi, np.pi) * (rng.random() < 0.25)
    return replace(scene, x=x, y=y, angle=angle), frame, rng


def render_still(config: WorldConfig, index: int, split: str = "stills") -> tuple[np.ndarray, str]:
    """Render a frame of the world, uint8 RGB [H, W, 3], with a true caption (see `caption`)."""
    scene, frame, rng = draw_still(config, index, split)
    image = draw_frames(scene, np.array([frame]), rng)[0]
    return image, caption(scene, frame, rng)


def _place_phrases(x: float, y: float) -> list[str]:
    """Return true phrases for a center at (x, y), in frame widths from the top left. Empty if none is clear."""
    across = "left" if x < 0.38 else "right" if x > 0.62 else ""
    along = "top" if y < 0.38 else "bottom" if y > 0.62 else ""
    high = {"top": "up", "bottom": "down"}.get(along, "")
    if across and along:
        return [f"{high} on the {across}", f"{high} {across}", f"at the {along} {across}", f"on the {across}", high]
    if across:
        return [f"on the {across}", f"to the {across}", across]
    if along:
        return [f"at the {along}", f"{high} at the {along}", high]
    return ["in the centre", "in the middle"]


def _posture_phrases(angle: float) -> list[str]:
    """Return true phrases for an angle in radians clockwise from upright. Empty between two words."""
    degrees = (np.rad2deg(angle) + 180) % 360 - 180
    if abs(degrees) < 15:
        return ["upright", "the right way up"]
    if abs(degrees) > 150:
        return ["upside down"]
    if 22 < degrees < 110:
        return ["tilted right", "turned clockwise", "clockwise"]
    if -110 < degrees < -22:
        return ["tilted left", "turned anticlockwise", "anticlockwise"]
    return []


def _size_phrases(radius: float) -> tuple[list[str], list[str]]:
    """Return true adjectives and true phrases for a radius in frame widths. Empty between two words."""
    if radius < 0.155:
        return ["small", "tiny"], ["far away", "away from us", "away"]
    if radius > 0.205:
        return ["large", "big"], ["close up", "closer to us", "closer"]
    return [], []


def caption(scene: Scene, frame: int, rng: np.random.Generator) -> str:
    """Return a true caption of one frame, such as "a photo of a small striped star on the left, upside down".

    The object is always named. Color, texture, size, position and posture are named at random where a word clearly
    fits. The captions contain the words of class names (left, right, up, down, clockwise, anticlockwise, closer, away,
    red, blue). They never describe motion: "turned clockwise" is a posture. A tenth of the captions only name the
    object.
    """
    talkative = rng.random() < 0.9

    def maybe(phrases: list[str], chance: float) -> str:
        return str(rng.choice(phrases)) if talkative and phrases and rng.random() < chance else ""

    sizes, distances = _size_phrases(float(scene.radius[frame]))
    adjectives = [maybe(sizes, 0.2), maybe([scene.color_name[frame]], 0.3), maybe([scene.texture], 0.1)]
    where = maybe(_place_phrases(float(scene.x[frame]), float(scene.y[frame])), 0.95)
    details = [maybe(distances, 0.2), maybe(_posture_phrases(float(scene.angle[frame])), 0.6)]
    noun = " ".join(filter(None, [*adjectives, scene.shape]))
    noun = f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
    opening = str(rng.choice(["", "a photo of", "a picture of", "an image of", "this is", "there is"]))
    if where and not opening and rng.random() < 0.4:
        return ", ".join(filter(None, [where, noun, *details]))
    sentence = " ".join(filter(None, [opening, noun, where]))
    return ", ".join(filter(None, [sentence, *details]))


def _holds_video(path: Path, config: WorldConfig) -> bool:
    """Return True if `path` opens as a video of the right size. A truncated mp4 has no index and does not open."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return False
    size = video_size(str(path.absolute()), stat.st_mtime_ns, stat.st_size)
    return size == (config.num_frames, config.image_size, config.image_size)


def _write_text(path: Path, text: str) -> None:
    """Write a text file atomically. A file with the same text is not touched, since others may be reading it."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    write_text(path, text)


def _write_table(path: Path, rows: Iterable[Iterable[object]]) -> None:
    _write_text(path, "".join(",".join(str(cell) for cell in row) + "\n" for row in rows))


def _claim(config: WorldConfig, root: Path) -> None:
    """Create `root` as the folder of this world, or raise FileExistsError if it contains another one."""
    record = {"version": WORLD_VERSION, **json.loads(json.dumps(asdict(config)))}
    described = root / "world.json"
    if described.exists():
        built = json.loads(described.read_text(encoding="utf-8"))
        differing = [key for key in {**built, **record} if built.get(key) != record.get(key)]
        if differing:
            listed = ", ".join(f"{key}={built.get(key)} (requested: {record.get(key)})" for key in differing)
            raise FileExistsError(
                f"{root} contains a world with another config: {listed}. "
                "Choose another folder, use the config of that world, or delete the folder first."
            )
    elif any((root / split).exists() for split in SPLITS):
        raise FileExistsError(
            f"{root} has split folders but no world.json that describes them. "
            "Choose another folder or delete them first."
        )
    else:
        root.mkdir(parents=True, exist_ok=True)
        _write_text(described, json.dumps(record, indent=2) + "\n")


def build_world(config: WorldConfig, root: str | os.PathLike[str], progress: bool = True) -> Path:
    """Write the world's videos and tables under `root` and return it. Run this in one process at a time.

    `world.json` (the config) comes first, then `<split>/<class_name>/<index>.mp4`. The last files are `classes.csv`
    (`id,name,object,motion,pair,partner`) and `<split>.csv` (`path,label`, with the path relative to `root`). Complete
    files are kept, so an interrupted build continues. Raises FileExistsError if `root` contains another world.
    """
    from rich.progress import track

    root = Path(root)
    _claim(config, root)
    for leftover in root.glob("*/*/.*.mp4.*"):
        leftover.unlink()
    labels = world_classes(config)
    clips = [
        (split, f"{split}/{label.name.replace(' ', '_')}/{index:04d}.mp4", label.id, index)
        for split in SPLITS
        for label in labels
        for index in range(getattr(config, f"{split}_per_class"))
    ]

    def make(clip: tuple[str, str, int, int]) -> None:
        split, name, class_id, index = clip
        write_video(root / name, render_clip(config, class_id, split, index), config.fps)

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        whole = pool.map(lambda clip: _holds_video(root / clip[1], config), clips)
        missing = [clip for clip, there in zip(clips, whole, strict=True) if not there]
        done = pool.map(make, missing)
        for _ in track(done, f"synthetic world in {root}", total=len(missing), disable=not (progress and missing)):
            pass
    columns = [field.name for field in fields(WorldClass)]
    _write_table(root / "classes.csv", [columns, *(astuple(label) for label in labels)])
    for split in SPLITS:
        rows = [(name, class_id) for of, name, class_id, _ in clips if of == split]
        _write_table(root / f"{split}.csv", [("path", "label"), *rows])
    return root
