"""Scores over time: shared frames, streams of frames, events; compared with windows that are read one by one."""

import csv
import itertools
import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import shake_adapters
from PIL import Image

import clipvid
from clipvid.data.preprocessing import Preprocessing
from clipvid.data.reader import Video, VideoError, open_video
from clipvid.inference import timeline_scores
from clipvid.inference.events import Event, events_table, find_events
from clipvid.inference.outputs import Timeline
from clipvid.inference.predictor import Predictor
from clipvid.inference.timeline import write_timeline
from clipvid.model.encoder import VideoEncoder

LABELS = ["walking", "running", "jumping"]
ROUNDING = 1e-6
RATES = {
    "constant": [number / 25 for number in range(140)],
    "varying": [*np.arange(0, 2, 0.5), *np.arange(2, 4, 0.04), *np.arange(4, 6.5, 0.25)],
    "gap": [*np.arange(0, 1, 0.05), *np.arange(4, 5, 0.05)],
    "short": [0.0, 0.04, 0.08],
}
MODELS = {
    "no adapter": {"adapter": "none"},
    "every block": {"adapter": "ila"},
    "last block": {"adapter": {"name": "sifa", "layers": [-1]}},
    "patches": {"adapter": "none", "head": "class_token"},
    "MIT": {"adapter": {"name": "st_adapter", "layers": [1]}, "pooling": "mit"},
    "by time": {"adapter": "none"},
}


def write_video(path: Path, times: list[float]) -> None:
    """Write noise whose frames appear at `times`, with B-frames."""
    generator = np.random.default_rng(len(times))
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"preset": "veryfast", "g": "20"})
        stream.width, stream.height, stream.pix_fmt = 72, 64, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for time in times:
            picture = np.kron(generator.integers(0, 256, (8, 9, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    for name, times in RATES.items():
        write_video(folder / f"{name}.mp4", times)
    return {name: folder / f"{name}.mp4" for name in RATES}


@pytest.fixture(scope="module")
def predictors(make_model) -> dict[str, Predictor]:
    built = {}
    for name, fields in MODELS.items():
        model = shake_adapters(make_model(labels=LABELS, num_frames=4, **fields))
        if name == "by time":
            model.preprocessing = Preprocessing(by="time")
        built[name] = Predictor(model)
    return built


def read_one_by_one(predictor: Predictor, path: Path, window: float, hop: float) -> Timeline:
    """Return the timeline by reading and scoring each window alone."""
    with open_video(path) as video:
        last = max(video.duration - window, 0)
        starts = [*np.arange(0, last - 1e-6, hop), last]
        parts = [video.frames_between(start, start + window) for start in starts]
        clips = torch.cat([predictor.reader.read(video, start=part.start, stop=part.stop) for part in parts])
        with torch.no_grad():
            scores = torch.cat([predictor.model(clip[None]).logits.softmax(-1) for clip in clips])
        return Timeline([start + min(window, video.duration) / 2 for start in starts], scores)


def frames_and_times(path: Path) -> list[tuple[float, np.ndarray]]:
    with open_video(path) as video:
        return list(zip(video.times, video.read(range(len(video))).numpy(), strict=True))


def collect(points) -> Timeline:
    points = list(points)
    return Timeline([point.time for point in points], torch.stack([point.scores for point in points]))


def assert_equal(actual: Timeline, expected: Timeline) -> None:
    assert actual.times == pytest.approx(expected.times)
    assert torch.allclose(actual.scores, expected.scores, atol=ROUNDING)
    if len(expected.times) > 2:
        assert expected.scores.std(dim=0).max() > 100 * ROUNDING


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(("rate", "window", "hop"), [("constant", 1.0, 0.4), ("varying", 1.5, 1.0)])
def test_timeline_equals_windows_read_one_by_one(predictors, videos, kind, rate, window, hop):
    expected = read_one_by_one(predictors[kind], videos[rate], window, hop)
    assert_equal(predictors[kind].timeline(videos[rate], window, hop), expected)


@pytest.mark.parametrize("kind", ["every block", "by time"])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(("window", "hop"), [(1.0, 0.4), (0.7, 1.3), (0.25, 0.25), (1000.0, 1.0)])
def test_live_equals_the_timeline_of_the_file(predictors, videos, kind, rate, window, hop):
    predictor, frames = predictors[kind], frames_and_times(videos[rate])
    with open_video(videos[rate]) as video:
        assert hop >= video.duration / len(video) or rate == "gap"
    assert_equal(collect(predictor.live(iter(frames), window, hop)), predictor.timeline(videos[rate], window, hop))


@pytest.mark.parametrize("form", ["fps", "PIL", "channels first", "PyAV", "later clock"])
def test_live_takes_frames_of_all_kinds(predictors, videos, form):
    predictor, frames = predictors["no adapter"], frames_and_times(videos["constant"])
    expected = predictor.timeline(videos["constant"], 1.0, 0.5)
    with av.open(str(videos["constant"])) as container:
        stream, fps = {
            "fps": lambda: ([frame for _, frame in frames], 25),
            "PIL": lambda: ([(time, Image.fromarray(frame)) for time, frame in frames], None),
            "channels first": lambda: ([(time, torch.from_numpy(each).movedim(-1, 0)) for time, each in frames], None),
            "PyAV": lambda: (container.decode(video=0), None),
            "later clock": lambda: ([(time + 5000, frame) for time, frame in frames], None),
        }[form]()
        timeline = collect(predictor.live(stream, 1.0, 0.5, fps))
    if form == "later clock":
        timeline = Timeline([time - 5000 for time in timeline.times], timeline.scores)
    assert_equal(timeline, expected)


def test_live_yields_as_soon_as_a_frame_follows_the_window(predictors):
    taken = []

    def camera():
        for number in itertools.count():
            taken.append(number)
            yield number / 10, np.full((8, 8, 3), number % 256, np.uint8)

    for number, point in enumerate(itertools.islice(predictors["every block"].live(camera(), 2.0, 0.5), 8)):
        assert point.time == pytest.approx(1 + number / 2)
        assert taken[-1] == 20 + 5 * number


def test_live_without_times_uses_the_clock(predictors, monkeypatch):
    clock = itertools.count(100, 0.25)
    monkeypatch.setattr("clipvid.inference.live.time.monotonic", lambda: next(clock))
    points = list(predictors["no adapter"].live([np.zeros((8, 8, 3), np.uint8)] * 9, 1.0, 0.5))
    assert [point.time for point in points] == pytest.approx([100.5, 101.0, 101.5, 101.75])


@pytest.mark.parametrize("kind", ["no adapter", "every block"])
def test_live_remembers_only_the_frames_of_a_window(predictors, monkeypatch, kind):
    kept = []

    class Counted(timeline_scores.SharedFrames):
        def forget_before(self, number):
            super().forget_before(number)
            kept.append((len(self._pixels), len(self._features)))

    monkeypatch.setattr(timeline_scores, "SharedFrames", Counted)
    frames = ((number / 10, np.full((8, 8, 3), number % 256, np.uint8)) for number in range(400))
    assert len(list(predictors[kind].live(frames, 2.0, 1.0))) == 39
    assert len(kept) == 400
    assert max(pixels for pixels, _ in kept) <= 23
    assert max(features for _, features in kept) <= 23


@pytest.mark.parametrize(
    ("frames", "options", "message"),
    [
        ([(0, np.zeros((8, 8, 3), np.uint8)), (0, np.zeros((8, 8, 3), np.uint8))], {}, "times must increase"),
        ([7], {}, "a frame is of type int; expected"),
        ([np.zeros((8, 8, 3), np.float32)], {}, "expected uint8"),
        ([], {"fps": 0}, "fps=0"),
        ([], {"hop": 1e-4}, "hop=0.0001: expected at least 0.001 s"),
        ([], {"window": 0}, "expected seconds above 0"),
    ],
)
def test_invalid_streams_are_refused(predictors, frames, options, message):
    with pytest.raises(clipvid.InputError, match=message):
        list(predictors["no adapter"].live(frames, **{"window": 1.0, "hop": 1.0} | options))


def test_stream_without_frames_has_no_points(predictors):
    assert list(predictors["no adapter"].live([], 1.0, 1.0)) == []


def test_frames_in_memory_have_no_timeline(predictors):
    with pytest.raises(VideoError, match="its frame rate is unknown"):
        predictors["no adapter"].timeline(np.zeros((4, 8, 8, 3), np.uint8), 1.0, 1.0)


def test_each_needed_frame_is_decoded_and_encoded_once_while_points_are_yielded(predictors, videos, monkeypatch):
    decoded, encoded = [], []
    frames, lower = Video.frames, VideoEncoder.lower

    def counted_frames(video, indices):
        for number, frame in frames(video, indices):
            decoded.append(number)
            yield number, frame

    def counted_lower(encoder, clip, depth):
        encoded.append(clip.shape[1])
        return lower(encoder, clip, depth)

    monkeypatch.setattr(Video, "frames", counted_frames)
    monkeypatch.setattr(VideoEncoder, "lower", counted_lower)
    points = predictors["last block"].iter_timeline(videos["constant"], 1.0, 0.24)
    next(points)
    assert len(decoded) < 80
    windows = 1 + len(list(points))
    assert windows == 21
    assert decoded == sorted(set(decoded))
    assert sum(encoded) == len(decoded) < 2 * windows


# Events

TIMES = [0.5, 1.5, 2.5, 3.5, 4.0]
SCORES = torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.6, 0.4], [0.5, 0.5]])


def test_events_are_series_of_windows_with_high_scores():
    events = find_events(Timeline(TIMES, SCORES), ["a", "b"])
    assert [event[:3] for event in events] == [
        (0.0, 2.0, "a"),
        (2.0, 3.0, "b"),
        (3.0, 4.5, "a"),
        (3.75, 4.5, "b"),
    ]
    assert [event.score for event in events] == pytest.approx([0.8, 0.8, 0.55, 0.5])
    assert find_events(Timeline(TIMES, SCORES), ["a", "b"], 0.95) == []
    assert find_events(Timeline([1.0], torch.tensor([[0.3, 0.7]])), ["a", "b"]) == [
        Event(0.0, 2.0, "b", pytest.approx(0.7))
    ]
    with pytest.raises(clipvid.InputError, match="threshold=0: expected"):
        find_events(Timeline(TIMES, SCORES), ["a", "b"], 0)


def test_events_table_quotes_names():
    assert events_table([Event(0, 1.23456, 'a, "b"', 0.5)]) == 'start,end,class,score\n0.000,1.235,"a, ""b""",0.500\n'


def test_events_are_written_beside_the_timeline(tmp_path):
    scores, _, table = write_timeline(tmp_path, "v.mp4", Timeline(TIMES, SCORES), ["a", "b"], 1.0, 1.0, 2, 0.6)
    events = find_events(Timeline(TIMES, SCORES), ["a", "b"], 0.6)
    record = json.loads(scores.read_text())
    assert record["threshold"] == 0.6
    assert record["events"] == [event.record() for event in events]
    rows = list(csv.DictReader(table.open()))
    assert [row["class"] for row in rows] == [event.label for event in events]
    assert [float(row["end"]) for row in rows] == [event.end for event in events]
