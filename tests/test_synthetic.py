"""Synthetic world: files match their names, and order is the only clue within a pair."""

import csv
import json
import re
from pathlib import Path

import av
import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from clipvid.data.synthetic.encoding import write_video
from clipvid.data.synthetic.rendering import COLORS, MOTIONS, SHAPES, TEXTURES, draw_frames, draw_scene
from clipvid.data.synthetic.world import (
    WorldClass,
    WorldConfig,
    build_world,
    clip_stream,
    draw_still,
    render_canonical,
    render_clip,
    render_still,
    world_classes,
)

TINY = WorldConfig(image_size=32, num_frames=6, objects=("star",), train_per_class=2, val_per_class=1, test_per_class=0)


def decode(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def find_class(config: WorldConfig, name: str) -> WorldClass:
    return next(label for label in world_classes(config) if label.name == name)


# Classes and clips


def test_classes_come_in_pairs():
    labels = world_classes(WorldConfig())
    assert len(labels) == 4 * 5 * 2
    assert [label.id for label in labels] == list(range(40))
    assert labels[0].name == "ball moving left"
    for label in labels:
        partner = labels[label.partner]
        assert partner.partner == label.id
        assert (partner.object, partner.pair) == (label.object, label.pair)
        assert {label.motion, partner.motion} == set(MOTIONS[label.pair])
        assert label.reverses != partner.reverses


def test_clips_are_deterministic_and_keyed_by_name():
    config, other = WorldConfig(), WorldConfig(objects=("moon", "star"), motions=("depth", "vertical"))
    one = render_clip(config, find_class(config, "star going away").id, "val", 3)
    same = render_clip(other, find_class(other, "star going away").id, "val", 3)
    assert one.shape == (24, 64, 64, 3)
    assert one.dtype == np.uint8
    np.testing.assert_array_equal(one, same)
    for seed, split, index in ((1, "val", 3), (0, "test", 3), (0, "val", 4)):
        changed = WorldConfig(seed=seed)
        different = render_clip(changed, find_class(changed, "star going away").id, split, index)
        assert np.abs(one.astype(int) - different).mean() > 5


@pytest.mark.parametrize("pair", MOTIONS)
def test_second_motion_is_the_first_played_backwards(pair):
    config = WorldConfig()
    first, second = (find_class(config, f"box {motion}") for motion in MOTIONS[pair])
    for label, step in ((first, 1), (second, -1)):
        canonical = render_canonical(config, "box", pair, clip_stream(config, label, "train", 0))
        np.testing.assert_array_equal(render_clip(config, label.id, "train", 0), canonical[::step])


@pytest.mark.parametrize("shape", SHAPES)
def test_pixels_show_the_scene(shape):
    """The position of the object follows its state. It grows, moves and turns as in the name of the first motion."""
    for pair in MOTIONS:
        scene = draw_scene(np.random.default_rng([7, len(shape)]), shape, pair, 16, 64)
        frames = draw_frames(scene, np.arange(16), np.random.default_rng(0), noise=0).astype(np.float32)
        bare = scene.background.transpose(1, 2, 0) * scene.light[:, None, None, None]
        drawn = np.abs(frames - bare).max(axis=-1) > 12
        area = drawn.sum(axis=(1, 2))
        assert area.min() > 40
        rows, columns = np.mgrid[:64, :64] + 0.5
        y, x = ((drawn * grid).sum(axis=(1, 2)) / area for grid in (rows, columns))
        slack = 0.45 * scene.radius * 64 + 1  # the pixels of a moon or a heart are not centered on its origin
        assert (np.abs(x - 64 * scene.x) < slack).all()
        assert (np.abs(y - 64 * scene.y) < slack).all()
        if pair == "horizontal":
            assert x[-1] < x[0] - 22
        elif pair == "vertical":
            assert y[-1] < y[0] - 22
        elif pair == "depth":
            assert area[-1] > 2.5 * area[0]
        elif pair == "colour":
            red, blue = ((frames[..., c] * drawn).sum(axis=(1, 2)) / area for c in (0, 2))
            assert (red[:8] > blue[:8] + 20).all()
            assert (blue[8:] > red[8:] + 20).all()
            assert scene.color_name == ("red",) * 8 + ("blue",) * 8


def test_clockwise_turns_clockwise_on_screen():
    for key in range(6):
        scene = draw_scene(np.random.default_rng(key), "ball", "rotation", 16, 64)
        frames = draw_frames(scene, np.arange(16), np.random.default_rng(0), noise=0).astype(np.float32)
        rows, columns = np.mgrid[:64, :64] + 0.5
        dx, dy = columns - 64 * scene.x[:, None, None], rows - 64 * scene.y[:, None, None]
        weight = (255 - frames.mean(axis=-1)) * (np.hypot(dx, dy) < 0.8 * 64 * scene.radius[:, None, None])
        dark_x, dark_y = (weight * dx).sum(axis=(1, 2)), (weight * dy).sum(axis=(1, 2))
        turned = np.diff(np.unwrap(np.arctan2(dark_y, dark_x)))
        assert 170 < np.rad2deg(turned.sum()) < 265
        eighths = scene.angle[np.linspace(0, 15, 8).round().astype(int)]
        assert np.rad2deg(np.abs(np.diff(eighths)).max()) < 55  # two or three frames apart


@pytest.mark.parametrize(
    "change",
    [
        {"objects": ("ball", "sofa")},
        {"objects": ()},
        {"motions": ("depth", "depth")},
        {"image_size": 63},
        {"num_frames": 1},
        {"seed": -1},
        {"val_per_class": -1},
    ],
)
def test_impossible_configs_are_refused(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))}=.*expected"):
        WorldConfig(**change)


# Stills


def test_stills_are_deterministic_and_captions_vary():
    config = WorldConfig()
    image, text = render_still(config, 5)
    again, same_text = render_still(config, 5)
    np.testing.assert_array_equal(image, again)
    assert text == same_text
    assert image.shape == (64, 64, 3)
    assert render_still(config, 5, "other stills")[1] != text or len(text) < 12
    captions = [render_still(config, index)[1] for index in range(300)]
    assert len(set(captions)) > 200
    words = set(re.findall(r"\w+", " ".join(captions)))
    assert words >= {"left", "right", "top", "bottom", "up", "down", "centre", "small", "large", "upright"}
    assert words >= {"upside", "clockwise", "anticlockwise", "tilted", "closer", "away", *COLORS, *TEXTURES}
    assert not words & {"moving", "turning", "coming", "going"}


def test_captions_are_true():
    config = WorldConfig(objects=tuple(SHAPES))
    for index in range(400):
        scene, frame, _ = draw_still(config, index, "stills")
        _, text = render_still(config, index)
        x, y, radius = scene.x[frame], scene.y[frame], scene.radius[frame]
        degrees = np.rad2deg(np.arctan2(np.sin(scene.angle[frame]), np.cos(scene.angle[frame])))
        place = re.sub("tilted (left|right)|the right way up|upside down|closer to us", "", text)
        facts = {
            r"\bleft\b": x < 0.4,
            r"\bright\b": x > 0.6,
            r"\b(top|up)\b": y < 0.4,
            r"\b(bottom|down)\b": y > 0.6,
            r"\b(centre|middle)\b": max(abs(x - 0.5), abs(y - 0.5)) < 0.121,
            r"\b(small|tiny|away)\b": radius < 0.16,
            r"\b(large|big|close up|closer)\b": radius > 0.2,
        }
        for pattern, true in facts.items():
            searched = text if "close" in pattern else re.sub("close up", "", place)
            assert true or not re.search(pattern, searched), (text, pattern)
        postures = {
            "upright|right way up": abs(degrees) < 16,
            "upside down": abs(degrees) > 149,
            r"tilted right|\bclockwise": 20 < degrees < 112,
            "tilted left|anticlockwise": -112 < degrees < -20,
        }
        for pattern, true in postures.items():
            assert true or not re.search(pattern, text), (text, pattern)
        words = set(re.findall(r"\w+", text))
        assert words & set(SHAPES) == {scene.shape}
        assert words & set(COLORS) <= {scene.color_name[frame]}
        assert words & set(TEXTURES) <= {scene.texture}


# Files


@pytest.mark.parametrize("pair", MOTIONS)
def test_encoding_commutes_with_reversal(pair, tmp_path):
    config = WorldConfig()
    frames = render_clip(config, find_class(config, f"cross {MOTIONS[pair][0]}").id, "train", 0)
    write_video(tmp_path / "forwards.mp4", frames, config.fps)
    write_video(tmp_path / "backwards.mp4", frames[::-1], config.fps)
    forwards, backwards = decode(tmp_path / "forwards.mp4"), decode(tmp_path / "backwards.mp4")
    assert forwards.shape == frames.shape
    np.testing.assert_array_equal(forwards, backwards[::-1])
    assert np.abs(forwards.astype(int) - frames).mean() < 5
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["backwards.mp4", "forwards.mp4"]


def test_write_video_refuses_what_it_cannot_encode(tmp_path):
    with pytest.raises(ValueError, match="uint8"):
        write_video(tmp_path / "a.mp4", np.zeros((4, 32, 32, 3), dtype=np.float32), 8)
    with pytest.raises(ValueError, match="even"):
        write_video(tmp_path / "a.mp4", np.zeros((4, 33, 32, 3), dtype=np.uint8), 8)
    assert not list(tmp_path.iterdir())


def test_build_world_writes_documented_files(tmp_path):
    root = build_world(TINY, tmp_path / "world", progress=False)
    with open(root / "classes.csv", newline="") as file:
        classes = list(csv.DictReader(file))
    assert list(classes[0]) == ["id", "name", "object", "motion", "pair", "partner"]
    assert [row["name"] for row in classes] == [label.name for label in world_classes(TINY)]
    assert json.loads((root / "world.json").read_text())["num_frames"] == 6
    for split, per_class in (("train", 2), ("val", 1), ("test", 0)):
        with open(root / f"{split}.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == per_class * len(classes)
        for row in rows:
            assert decode(root / row["path"]).shape == (6, 32, 32, 3)
    assert (root / "train.csv").read_text().startswith("path,label\ntrain/star_moving_left/0000.mp4,0\n")
    with av.open(str(root / "train/star_moving_left/0000.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate, stream.frames) == ("h264", 8, 6)
        assert all(packet.is_keyframe for packet in container.demux(stream) if packet.size)


def test_build_world_resumes_and_repeats(tmp_path):
    def contents() -> dict[str, bytes]:
        return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}

    root = build_world(TINY, tmp_path / "world", progress=False)
    built = contents()
    folder = root / "train" / "star_going_away"
    kept = [folder / "0000.mp4", root / "classes.csv", root / "train.csv"]
    written = [path.stat().st_mtime_ns for path in kept]
    (folder / "0001.mp4").unlink()
    (folder / ".0001.mp4.k3j2.tmp").write_bytes(built["train/star_going_away/0001.mp4"][:500])
    cut = root / "val" / "star_moving_up" / "0000.mp4"
    cut.write_bytes(cut.read_bytes()[:-200])
    (root / "val.csv").unlink()
    build_world(TINY, root, progress=False)
    assert contents() == built
    assert [path.stat().st_mtime_ns for path in kept] == written


def test_build_world_refuses_another_world(tmp_path):
    root = build_world(TINY, tmp_path / "world", progress=False)
    other = WorldConfig(**{**TINY.__dict__, "seed": 3})
    with pytest.raises(FileExistsError, match=r"seed=0 \(requested: 3\).*another folder"):
        build_world(other, root, progress=False)
    (root / "world.json").unlink()
    with pytest.raises(FileExistsError, match=r"no world\.json"):
        build_world(TINY, root, progress=False)


# The point of the world


def describe_frames(clip: np.ndarray) -> np.ndarray:
    """Return one descriptor per frame, [T, H, W, 3] -> [T, D]: color, edges, and distance from the clip's median."""
    pixels = clip.astype(np.float32) / 255
    num_frames, size = pixels.shape[:2]
    small = pixels.reshape(num_frames, 16, size // 16, 16, size // 16, 3).mean(axis=(2, 4))
    edges = np.abs(np.diff(small, axis=1))[:, :, :-1] + np.abs(np.diff(small, axis=2))[:, :-1]
    moved = np.abs(small - np.median(small, axis=0)).sum(axis=-1)
    maps = [np.concatenate([small, moved[..., None]], axis=-1).reshape(num_frames, 8, 2, 8, 2, 4).mean((2, 4))]
    maps += [edges.sum(axis=-1)[:, ::2, ::2], small.mean(axis=(1, 2)), small.std(axis=(1, 2))]
    return np.concatenate([part.reshape(num_frames, -1) for part in maps], axis=1)


def without_order(frames: np.ndarray) -> np.ndarray:
    """Return statistics of a bag of frame descriptors [T, D]: sorted values, mean and second moments."""
    coarse = frames[:, :256].reshape(len(frames), 64, 4).mean(axis=1)
    moments = np.cov(np.concatenate([coarse, frames[:, -6:]], axis=1).T)
    return np.concatenate([np.sort(frames, axis=0)[::3].ravel(), frames.mean(axis=0), moments.ravel()])


def with_order(frames: np.ndarray) -> np.ndarray:
    """Return every third descriptor in order, and the change from each to the next."""
    return np.concatenate([frames[::3].ravel(), np.diff(frames[::3], axis=0).ravel()])


def held_out_accuracies(train: np.ndarray, test: np.ndarray) -> list[float]:
    """Return the accuracy of a linear classifier and of a forest; rows [N, D] alternate between the two classes."""
    labels, truth = np.arange(len(train)) % 2, np.arange(len(test)) % 2
    reduce = make_pipeline(StandardScaler(), PCA(50, svd_solver="arpack", random_state=0, whiten=True))
    train, test = reduce.fit_transform(train), reduce.transform(test)
    models = [
        LogisticRegression(C=0.1, max_iter=1000),
        ExtraTreesClassifier(100, min_samples_leaf=2, random_state=0),
    ]
    return [float((model.fit(train, labels).predict(test) == truth).mean()) for model in models]


@pytest.mark.slow
@pytest.mark.parametrize("pair", MOTIONS)
def test_bag_of_frames_is_at_chance(pair):
    """Two controls show that the test can fail.

    They are the same classifiers with order, and the same bag of frames of the first half of each clip, which differs
    between the motions.
    """
    config = WorldConfig(objects=("star",), motions=(pair,))
    clips = {
        split: [describe_frames(render_clip(config, i % 2, split, i // 2)) for i in range(200)]
        for split in ("train", "test")
    }
    views = (without_order, with_order, lambda frames: without_order(frames[: len(frames) // 2]))
    bag, ordered, half_bag = (
        held_out_accuracies(*(np.stack([view(clip) for clip in clips[split]]) for split in ("train", "test")))
        for view in views
    )
    print(f"{pair}: bag of frames {bag}, in order {ordered}, bag of the first half {half_bag}")
    four_sigma = 4 * 0.5 / np.sqrt(200)
    assert all(abs(accuracy - 0.5) < four_sigma for accuracy in bag), bag
    if pair != "rotation":  # random angles leave nothing in half a clip, and order takes more than these models
        assert max(ordered) > 0.85, ordered
        assert max(half_bag) > 0.8, half_bag
