"""Animated WebP files are read as other videos are, with the times of their frames."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipvid.data.reader import VideoError, open_video, read_frames

GRAYS = [0, 60, 120, 180, 240]


def write(path: Path, durations: int | list[int] = 100, alpha: int | None = None) -> Path:
    """Write five frames of 40x30 pixels, each of one gray."""
    colors = [(gray, gray, gray) if alpha is None else (gray, gray, gray, alpha) for gray in GRAYS]
    first, *others = [Image.new("RGB" if alpha is None else "RGBA", (40, 30), color) for color in colors]
    first.save(path, save_all=True, append_images=others, duration=durations, lossless=True, exact=True)
    return path


@pytest.mark.parametrize("kind", ["path", "bytes", "file"])
def test_animated_webp_is_read(tmp_path: Path, kind: str):
    path = write(tmp_path / "a.webp")
    source = {"path": path, "bytes": path.read_bytes()}.get(kind) or path.open("rb")
    with open_video(source) as video:
        frames = video.read([4, 0, 2, 2])
        assert (len(video), video.fps, video.backend) == (5, 10.0, "pillow")
    assert frames.shape == (4, 30, 40, 3)
    assert [int(value) for value in frames.float().mean((1, 2, 3))] == [240, 0, 120, 120]


def test_times_of_webp_are_those_that_it_declares(tmp_path: Path):
    with open_video(write(tmp_path / "a.webp", [500, 100, 100, 100, 1000])) as video:
        assert video.times == pytest.approx([0, 0.5, 0.6, 0.7, 0.8])
        assert video.duration == pytest.approx(1.8)
        assert video.frames_between(0.5, 0.7) == range(1, 3)
        assert video.frames_between(1.5, None) == range(4, 5)
        assert video.frame_times(range(3, 5)) == pytest.approx([0.7, 0.8, 1.8])
        assert video.has_varying_rate
        with pytest.raises(VideoError, match="ends after"):
            video.frames_between(5, 6)


def test_frames_without_duration_last_as_long_as_in_browsers(tmp_path: Path):
    with open_video(write(tmp_path / "a.webp", 0)) as video:
        assert video.times == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
        assert not video.has_varying_rate


def test_transparent_pixels_of_webp_are_shown_over_black(tmp_path: Path):
    frames = read_frames(write(tmp_path / "a.webp", alpha=128), [4])
    assert int(frames.float().mean()) == pytest.approx(120, abs=1)


def test_still_webp_is_one_frame(tmp_path: Path):
    Image.new("RGB", (40, 30), (9, 9, 9)).save(tmp_path / "a.webp", lossless=True)
    with open_video(tmp_path / "a.webp") as video:
        assert (len(video), int(video.read([0]).float().mean())) == (1, 9)


@pytest.mark.parametrize(
    ("variable", "limit", "reason"),
    [("MAX_PIXELS", 1000, "its frames are 40x30"), ("MAX_FRAMES", 4, "declares 5 frames")],
)
def test_limits_hold_for_webp(tmp_path: Path, monkeypatch, variable: str, limit: int, reason: str):
    monkeypatch.setenv(f"CLIPVID_{variable}", str(limit))
    with pytest.raises(VideoError, match=reason):
        open_video(write(tmp_path / "a.webp"))


@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
def test_other_readers_refuse_webp(tmp_path: Path, backend):
    with pytest.raises(VideoError, match="use backend 'auto'"):
        open_video(write(tmp_path / "a.webp"), backend)


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9])
def test_truncated_webp_is_one_bad_video(tmp_path: Path, kept: float):
    content = write(tmp_path / "a.webp").read_bytes()
    with pytest.raises(VideoError), open_video(content[: int(kept * len(content))]) as video:
        video.read([len(video) - 1])


def test_webp_without_frames_is_one_bad_video():
    extended = b"VP8X" + (10).to_bytes(4, "little") + b"\x02" + b"\0" * 9
    content = b"WEBP" + extended + np.random.default_rng(0).bytes(64)
    with pytest.raises(VideoError, match="no frame"):
        open_video(b"RIFF" + len(content).to_bytes(4, "little") + content)
