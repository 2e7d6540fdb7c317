"""Uniform sampling in presentation time, and warnings about videos whose frame rate varies."""

from __future__ import annotations

import io
import warnings
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_loader import grey_video

import clipvid
from clipvid.data.batches import EvalBatches, TrainBatches
from clipvid.data.config import DataConfig
from clipvid.data.loader import VideoDataset, build_loader
from clipvid.data.manifest import ClassInfo, Manifest, Sample
from clipvid.data.preprocessing import Preprocessing
from clipvid.data.reader import VideoError, open_video
from clipvid.data.sampling import FrameSampling, keyed_generator
from clipvid.data.transforms import eval_transforms, train_transform
from clipvid.inference.predictor import ClipReader, Predictor
from clipvid.inference.videos import FramesInMemory
from clipvid.runs.config_files import parse_config
from clipvid.training.config import FinetuneConfig

BY_TIME = FrameSampling("uniform", 4, by="time")
# 10 s at 1 frame per second, then 2 s at 30.
TIMES = [*range(10), *(10 + number / 30 for number in range(60))]
SHOWN = [1, 4, 7, 10.5]  # on screen at 1.5, 4.5, 7.5 and 10.5 s


def rates_video(path: Path, times: list[float] = TIMES, codec: str = "libx264") -> Path:
    """Write a video whose gray level is 20 times the second at which a frame appears."""
    with av.open(str(path), "w") as out:
        options = {"bf": "0", "g": "10", "crf": "1"} if codec == "libx264" else {"deadline": "realtime"}
        stream = out.add_stream(codec, rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for time in times:
            picture = np.full((64, 64, 3), round(20 * time), np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def seconds(frames: torch.Tensor) -> list[float]:
    """Return when the frames of a clip appear, from their gray levels."""
    return [float(frame.float().mean()) / 20 for frame in frames]


@pytest.fixture(scope="module")
def rates(tmp_path_factory) -> Path:
    """Folder of three videos with two frame rates and one with one."""
    root = tmp_path_factory.mktemp("rates")
    for name in "abc":
        rates_video(root / f"{name}.mp4")
    grey_video(root / "d.mp4", 12)
    return root


@pytest.fixture
def manifest(rates) -> Manifest:
    samples = tuple(Sample(f"{name}.mp4", place % 2) for place, name in enumerate("abcd"))
    return Manifest(samples, (ClassInfo(0, "even"), ClassInfo(1, "odd")), rates)


@pytest.mark.parametrize("backend", ["auto", "pyav", "decord", "torchcodec"])
@pytest.mark.parametrize("name", ["v.mp4", "v.mov", "v.mkv", "v.webm", "v.ts"])
def test_every_reader_and_container_gives_frames_evenly_in_time(name: str, backend: str, tmp_path: Path):
    codec = "libvpx" if name.endswith("webm") else "libx264"
    path = rates_video(tmp_path / name, codec=codec)
    try:
        video = open_video(path, backend)
    except VideoError as refusal:
        assert backend not in ("auto", "pyav")
        pytest.skip(refusal.reason)
    with video:
        assert video.has_varying_rate
        part = range(len(video))
        indices = BY_TIME.indices(len(video), video.frame_times(part))
        assert seconds(video.read(indices)) == pytest.approx(SHOWN, abs=0.1)
        by_frame = FrameSampling("uniform", 4).indices(len(video))
        assert seconds(video.read(by_frame))[1] > 10


@pytest.mark.parametrize("kind", ["path", "bytes", "file object"])
def test_paths_bytes_and_file_objects_have_the_same_times(kind: str, rates: Path):
    path = rates / "a.mp4"
    source = {"path": path, "bytes": path.read_bytes(), "file object": io.BytesIO(path.read_bytes())}[kind]
    reader = ClipReader(BY_TIME, eval_transforms(32)[0])
    with open_video(source) as video:
        assert seconds(reader.read(video)[0]) == pytest.approx(SHOWN, abs=0.1)
        views = reader.read(video, views=2)
    assert seconds(views[0]) == pytest.approx([0, 3, 6, 9], abs=0.1)
    assert seconds(views[1]) == pytest.approx([2, 5, 8, 11 + 1 / 4], abs=0.1)


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_frames_without_times_count_as_evenly_spaced(kind: str, tmp_path: Path):
    pictures = [np.full((32, 32, 3), 10 * i, np.uint8) for i in range(11)]
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    source = open_video(tmp_path) if kind == "folder" else FramesInMemory(np.stack(pictures))
    assert not source.has_varying_rate
    samplings = (BY_TIME, FrameSampling("uniform", 4))
    assert torch.equal(*(ClipReader(sampling, eval_transforms(32)[0]).read(source) for sampling in samplings))


@given(st.integers(1, 300), st.integers(1, 20), st.integers(1, 4), st.sampled_from([24, 25, 30, 29.97, 1000]))
def test_at_a_constant_rate_time_and_frames_agree(total: int, num_frames: int, num_clips: int, rate: float):
    times = [number / rate for number in range(total + 1)]
    for clip in range(num_clips):
        actual = [
            FrameSampling("uniform", num_frames, by=by).indices(total, times, clip=clip, num_clips=num_clips)
            for by in ("frame", "time")
        ]
        assert torch.equal(*actual)


@given(st.lists(st.floats(0.001, 5), min_size=1, max_size=50), st.integers(1, 20), st.integers(0, 1 << 30))
def test_random_moments_fall_into_their_parts(gaps: list[float], num_frames: int, seed: int):
    times = np.cumsum([0, *gaps]).tolist()
    sampling = FrameSampling("uniform", num_frames, by="time")
    indices = sampling.indices(len(gaps), times, generator=keyed_generator(seed))
    assert (indices.shape, indices.dtype) == ((num_frames,), torch.int64)
    assert bool((indices.diff() >= 0).all())
    for place, index in enumerate(indices.tolist()):
        assert 0 <= index < len(gaps)
        assert times[index] <= (place + 1) / num_frames * times[-1] + 1e-6
        assert times[index + 1] >= place / num_frames * times[-1] - 1e-6


def test_parts_of_a_video_are_sampled_by_their_times(rates: Path):
    samples = (Sample("a.mp4", 0, start=4.0, end=11.0), Sample("a.mp4", 0, start=10.0), Sample("a.mp4", 0, end=4.0))
    part = Manifest(samples, (ClassInfo(0, "x"),), rates)
    dataset = VideoDataset(part, FrameSampling("uniform", 2, by="time"), eval_transforms(32), seed=0, training=False)
    actual = [seconds(dataset[0, index]["frames"][0]) for index in range(3)]
    assert actual == [pytest.approx(pair, abs=0.1) for pair in ([5, 9], [10.5, 11.5], [1, 3])]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("training", [True, False])
def test_varying_rates_are_warned_about_once_and_counted(training: bool, workers: int, manifest: Manifest):
    transform = train_transform(32) if training else eval_transforms(32)
    dataset = VideoDataset(manifest, FrameSampling("uniform", 4), transform, seed=0, training=training)
    batches = TrainBatches(4, 2, seed=0) if training else EvalBatches(4, 2)
    loader = build_loader(dataset, batches, workers)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        shown = [batch for _ in range(3) for batch in loader]
    assert len(shown) == 6
    assert all("varies" not in batch for batch in shown)
    messages = [str(warning.message) for warning in caught if not issubclass(warning.category, DeprecationWarning)]
    first, counted = messages
    assert ".mp4: its frame rate varies by more than 2x" in first
    assert "3 of 4 videos have a frame rate that varies by more than 2x" in counted
    assert all("data.sampling='{name: uniform, by: time}'" in text for text in (first, counted))


@pytest.mark.parametrize("sampling", [BY_TIME, FrameSampling("dense", 4, 2)], ids=["by time", "dense"])
def test_other_sampling_is_not_warned_about(sampling: FrameSampling, manifest: Manifest):
    dataset = VideoDataset(manifest, sampling, eval_transforms(32), seed=0, training=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(build_loader(dataset, EvalBatches(4, 2), 0))) == 2


def test_model_trained_by_time_predicts_by_time(make_model, rates: Path, tmp_path: Path):
    model = make_model(labels=["a", "b"], num_frames=4)
    model.preprocessing = DataConfig(sampling={"name": "uniform", "by": "time"}).preprocessing
    model.save_pretrained(tmp_path)
    predictor = Predictor(clipvid.from_pretrained(tmp_path))
    assert predictor.reader.sampling == BY_TIME
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictor(rates / "a.mp4")


@pytest.mark.parametrize(
    "words",
    [
        ["--data.sampling={name: uniform, by: time}"],
        ["--data.sampling.name=uniform", "--data.sampling.by=time"],
        ["--config", "run.yaml"],
    ],
)
def test_option_is_read_from_options_and_files(words: list[str], tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text("data: {sampling: {name: uniform, by: time}}\n")
    config = parse_config(FinetuneConfig, words, "test")
    assert config.data.preprocessing == Preprocessing(by="time")
    assert DataConfig(sampling={"name": "dense", "stride": 3}).preprocessing == Preprocessing("dense", 3)
    assert DataConfig().preprocessing.record() == {
        "sampling": {"name": "uniform", "stride": 1}, "resize": "shortest_center"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": "unifrom"}, "sampling='unifrom'.*did you mean 'uniform'"),
        ({"sampling": {"name": "uniform", "by": "tmie"}}, "by='tmie'.*did you mean 'time'"),
        ({"sampling": {"name": "dense", "by": "time"}}, "by: time has no meaning in dense sampling"),
        ({"sampling": {"name": "uniform", "per": "time"}}, "data.sampling=.*expected a name, or a mapping"),
        ({"sampling": {"name": "dense", "stride": 2}, "stride": 3}, "data.sampling has stride 2, and data.stride=3"),
        ({"sampling": {"name": "dense", "stride": "2"}}, "stride='2'"),
        ({"sampling": "uniform", "stride": 2}, "stride 2 is not used by uniform sampling"),
    ],
)
def test_options_without_sense_are_refused(options: dict, message: str):
    with pytest.raises(clipvid.InputError, match=message):
        DataConfig(**options)
