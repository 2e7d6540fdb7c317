"""Clips of the predictor: frames resized one by one as they are decoded, in bounded memory."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import Worker

from clipvid.data.preprocessing import Preprocessing
from clipvid.data.reader import VideoError, open_video
from clipvid.data.synthetic.encoding import write_video
from clipvid.inference.clips import ClipReader
from clipvid.inference.videos import FramesInMemory


def noise(frames: int, height: int, width: int) -> np.ndarray:
    generator = np.random.default_rng(height)
    coarse = generator.integers(0, 256, (1, height // 8 + 1, width // 8 + 1, 3), np.uint8)
    picture = np.kron(coarse, np.ones((1, 8, 8, 1), np.uint8))[0, :height, :width]
    return np.stack([np.roll(picture, (number, 3 * number), (0, 1)) for number in range(frames)])


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "a.mp4"
    write_video(path, noise(37, 90, 122), 25, {"preset": "veryfast"})
    return path


@pytest.mark.parametrize("resize", ["shortest_center", "squash", "bilinear_center"])
@pytest.mark.parametrize("form", ["file", "images", "webp", "memory"])
def test_frames_resized_one_by_one_equal_a_resized_clip(video, tmp_path, resize, form):
    frames = noise(19, 90, 122)
    if form == "images":
        for number, frame in enumerate(frames):
            Image.fromarray(frame).save(tmp_path / f"{number}.png")
    elif form == "webp":
        first, *others = map(Image.fromarray, frames)
        first.save(tmp_path / "a.webp", save_all=True, append_images=others, lossless=True)
    source = {"file": video, "images": tmp_path, "webp": tmp_path / "a.webp"}.get(form)
    reader = ClipReader.create(5, 48, Preprocessing(resize=resize))
    opened = FramesInMemory(frames) if source is None else open_video(source)
    clips = reader.read(opened, 3)
    for view, clip in enumerate(clips):
        indices = reader.sampling.indices(len(opened), clip=view, num_clips=3)
        assert torch.equal(clip, reader.transform(opened.read(indices).permute(0, 3, 1, 2)))
    assert len({clip.numpy().tobytes() for clip in clips}) == 3


def test_each_frame_is_decoded_once_and_in_order(video):
    with open_video(video) as opened:
        numbers = [number for number, _ in opened.frames([3, 4, 20, 36])]
        single = dict(opened.frames(range(len(opened))))
        assert numbers == [3, 4, 20, 36]
        assert all(torch.equal(single[number], opened.read([number])[0]) for number in numbers)
        stopped = opened.frames(range(len(opened)))
        assert next(stopped)[0] == 0
        stopped.close()
        assert torch.equal(opened.read([5])[0], single[5])


def test_images_of_different_sizes_are_an_error(tmp_path):
    for number in range(4):
        Image.new("RGB", (8 + number // 3, 8)).save(tmp_path / f"{number}.png")
    with pytest.raises(VideoError, match="its images differ in size"):
        ClipReader.create(4, 8, None).read(open_video(tmp_path))


def measure(path: str) -> None:
    from clipvid.runs.memory import peak_resident_memory

    reader = ClipReader.create(32, 64, None)
    reader.read(FramesInMemory(np.zeros((8, 64, 64, 3), np.uint8)))
    with open_video(path) as opened:
        before = peak_resident_memory()
        clips = reader.read(opened, 3)
    print(clips.shape[1], peak_resident_memory() - before, flush=True)


def test_memory_does_not_grow_with_the_number_of_frames(tmp_path):
    """96 frames of 960x540 take 149 MB, and the resized ones 1 MB."""
    write_video(tmp_path / "a.mp4", noise(96, 540, 960), 25, {"preset": "ultrafast"})
    worker = Worker(tmp_path / "log", {}, measure, str(tmp_path / "a.mp4"))
    assert worker.ended() == 0, worker.said
    frames, used = map(int, worker.said.split())
    assert frames == 32
    assert used < 45 << 20
