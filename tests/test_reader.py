"""Reader compared with a full decoding of the file, and with numbers painted into the frames."""

import importlib.util
import io
import os
import pickle
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from clipvid.data import reader
from clipvid.data.reader import VideoError, open_video, read_frames
from clipvid.decoding import demux, fast_readers
from clipvid.decoding.demux import METADATA_OPTIONS

HAS_DECORD = importlib.util.find_spec("decord") is not None
WIDTH, HEIGHT, BIT = 96, 64, 8
SHARED_DATA = Path(os.environ.get("CLIPVID_SHARED_DATA", Path(__file__).parents[1] / "../shared/data"))


def numbered_picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Draw a picture with its number in white and black squares along the top, over something that moves."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[..., 1] = np.arange(width) * 2
    picture[height // 2 :, number * 3 % width : number * 3 % width + BIT, 2] = 255
    for bit in range(10):
        picture[: 2 * BIT, bit * BIT : (bit + 1) * BIT] = 255 if number >> bit & 1 else 0
    return picture


def number_in(picture: np.ndarray) -> int:
    return sum((picture[BIT, bit * BIT + BIT // 2].mean() > 128) << bit for bit in range(10))


@dataclass(frozen=True)
class Recipe:
    """Recipe of a small video. `ticks` gives the time of frame i in hundredths of a second."""

    file: str
    codec: str = "libx264"
    frames: int = 40
    gop: int = 12
    b_frames: int = 0
    pixels: str = "yuv420p"
    options: dict[str, str] = field(default_factory=dict)
    container: dict[str, str] = field(default_factory=dict)
    ticks: Callable[[int], int] = lambda i: 4 * i
    decord: bool = False

    def write(self, folder: Path, width: int = WIDTH, height: int = HEIGHT) -> Path:
        if self.codec not in av.codecs_available:
            pytest.skip(f"this build of PyAV has no {self.codec}")
        path = folder / self.file
        with av.open(str(path), "w", options=self.container) as out:
            stream = out.add_stream(self.codec, rate=25, options=self.options)
            stream.width, stream.height, stream.pix_fmt = width, height, self.pixels
            stream.gop_size, stream.max_b_frames = self.gop, self.b_frames
            stream.codec_context.time_base = Fraction(1, 100)
            for i in range(self.frames):
                frame = av.VideoFrame.from_ndarray(numbered_picture(i, width, height), format="rgb24")
                frame.pts, frame.time_base = self.ticks(i), Fraction(1, 100)
                out.mux(stream.encode(frame))
            out.mux(stream.encode())
        return path


def uneven(i: int) -> int:
    return 4 * i + i * i % 3


OPEN_GOP = {"x264-params": "open-gop=1:scenecut=0"}
RECIPES = [
    Recipe("plain.mp4", decord=True),
    Recipe("one_frame.mp4", frames=1, decord=True),
    Recipe("b_frames.mp4", b_frames=3, decord=True),
    Recipe("long_gop.mkv", b_frames=3, gop=300, frames=90, decord=True),
    Recipe("fragments.mp4", b_frames=2, container={"movflags": "frag_keyframe+empty_moov"}, decord=True),
    Recipe("uneven.mp4", b_frames=2, ticks=uneven, decord=True),
    Recipe("uneven.mkv", b_frames=2, ticks=uneven, decord=True),
    Recipe("late.mp4", b_frames=2, ticks=lambda i: 1000 + 4 * i, decord=True),
    Recipe("late.mkv", b_frames=2, ticks=lambda i: 1000 + 4 * i, decord=True),
    Recipe("vp9.webm", codec="libvpx-vp9", options={"lag-in-frames": "16", "auto-alt-ref": "1"}, decord=True),
    Recipe("hevc.mp4", codec="libx265", b_frames=3, options={"x265-params": "log-level=none"}),
    Recipe("vp8.webm", codec="libvpx", options={"lag-in-frames": "16", "auto-alt-ref": "1"}),
    Recipe("open_gop.mp4", b_frames=3, frames=38, options=OPEN_GOP),
    Recipe("open_gop.ts", b_frames=3, frames=38, options=OPEN_GOP),
    Recipe("refresh.ts", frames=60, options={"x264-params": "intra-refresh=1"}),
    Recipe("b_frames.ts", b_frames=2),
    Recipe("b_frames.avi", b_frames=2),
    Recipe("plain.flv"),
    Recipe("mpeg4.avi", codec="mpeg4"),
    Recipe("mpeg4_b_frames.avi", codec="mpeg4", b_frames=2),
    Recipe("mpeg4_b_frames.mp4", codec="mpeg4", b_frames=2),
    Recipe("mpeg2.mpg", codec="mpeg2video", b_frames=2),
    Recipe("mpeg2.mkv", codec="mpeg2video", b_frames=2),
    Recipe("mjpeg.avi", codec="mjpeg", pixels="yuvj420p"),
    Recipe("raw.h264", b_frames=2),
    Recipe("pictures.gif", codec="gif", pixels="rgb8"),
]


def over_black(frame: av.VideoFrame) -> np.ndarray:
    if not any(component.is_alpha for component in frame.format.components):
        return frame.to_ndarray(format="rgb24")
    picture = frame.to_ndarray(format="rgba").astype(float)
    return (picture[..., :3] * picture[..., 3:] / 255).round().astype(np.uint8)


def decode_all(path: Path) -> list[np.ndarray]:
    """Return every frame that decodes, packet by packet, in one thread. This defines the indices."""
    images = []
    with av.open(str(path), **METADATA_OPTIONS) as container:
        stream = container.streams.best("video")
        if stream is None or stream.codec_context is None:
            return []
        stream.codec_context.thread_count = 1
        try:
            for packet in container.demux(stream):
                try:
                    images += [np.rot90(over_black(f), round(f.rotation / 90)) for f in packet.decode()]
                except av.FFmpegError:
                    continue
        except av.FFmpegError:
            pass
    return images


def index_sets(total: int, seed: int = 0) -> list[list[int]]:
    """Yield every frame alone in random order, random clips in any order with repeats, and the whole video."""
    rng = random.Random(seed)
    alone = [[i] for i in rng.sample(range(total), min(total, 60))]
    clips = [[rng.randrange(total) for _ in range(8)] for _ in range(10)]
    return [*alone, *clips, list(range(total)), [total - 1]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


@pytest.mark.parametrize("backend", ["auto", "decord", "torchcodec"])
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.file)
def test_every_index_returns_its_frame(recipe: Recipe, backend: str, folder: Path):
    path = recipe.write(folder)
    expected = decode_all(path)
    assert [number_in(image) for image in expected] == list(range(recipe.frames))
    if backend != "auto":
        try:
            open_video(path, backend)
        except VideoError as refusal:
            assert backend != "decord" or not HAS_DECORD or not recipe.decord
            pytest.skip(str(refusal.reason))
    with open_video(path, backend) as video:
        assert len(video) == recipe.frames
        assert video.backend == ("pyav" if backend == "auto" else backend)
        for indices in index_sets(recipe.frames):
            frames = video.read(indices)
            assert frames.dtype == torch.uint8
            assert frames.shape == (len(indices), HEIGHT, WIDTH, 3)
            for index, frame in zip(indices, frames.numpy(), strict=True):
                assert number_in(frame) == index
                assert np.abs(frame.astype(int) - expected[index]).max() <= 2


def test_read_frames_reads_paths_bytes_and_files(folder: Path):
    path = RECIPES[0].write(folder)
    expected = read_frames(path, [3, 30, 3])
    assert [number_in(frame) for frame in expected.numpy()] == [3, 30, 3]
    with path.open("rb") as file:
        file.seek(100)
        for source in (str(path), path.read_bytes(), file, io.BytesIO(path.read_bytes())):
            assert torch.equal(read_frames(source, torch.tensor([3, 30, 3])), expected)


def test_fps(folder: Path):
    assert open_video(RECIPES[0].write(folder)).fps == pytest.approx(25)
    assert open_video(Recipe("half.mp4", ticks=lambda i: 8 * i).write(folder)).fps == pytest.approx(12.5, rel=0.03)


@pytest.mark.parametrize("backend", ["pyav", "auto"])
@pytest.mark.parametrize(("degrees", "quarter_turns"), [(90, -1), (180, 2), (270, 1)])
def test_frames_are_upright(degrees: int, quarter_turns: int, backend: str, folder: Path):
    """The matrix of the track header rotates the picture clockwise."""
    one, minus = (1 << 16).to_bytes(4, "big"), ((1 << 32) - (1 << 16)).to_bytes(4, "big")
    a, b, c, d = {90: (0, one, minus, 0), 180: (minus, 0, 0, minus), 270: (0, minus, one, 0)}[degrees]
    path = Recipe("upright.mp4", frames=5).write(folder)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    for place, value in zip((0, 4, 12, 16), (a, b, c, d), strict=True):
        data[matrix + place : matrix + place + 4] = value or bytes(4)
    turned = folder / f"turned_{degrees}.mp4"
    turned.write_bytes(data)
    plain = read_frames(path, [0, 4], backend=backend)
    assert torch.equal(read_frames(turned, [0, 4], backend=backend), torch.rot90(plain, quarter_turns, (1, 2)))


def test_leading_trimmed_frames_do_not_count(folder: Path):
    """Packets that an edit list cuts off are decoded but not shown."""
    source = Recipe("whole.mp4", b_frames=0).write(folder)
    path = folder / "trimmed.mp4"
    with av.open(str(source)) as whole, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(whole.streams.video[0]):
            if packet.size:
                packet.pts, packet.dts = packet.pts - 5 * 512, packet.dts - 5 * 512
                packet.stream = stream
                out.mux(packet)
    expected = decode_all(path)
    with open_video(path) as video:
        assert len(video) == len(expected)
        shown = [number_in(frame) for frame in video.read(range(len(video))).numpy()]
    assert shown == [number_in(image) for image in expected]


def test_frames_that_are_never_shown_do_not_count(folder: Path):
    """VP8 has frames for reference only, each in a separate packet."""
    source, path = Recipe("shown.webm", codec="libvpx").write(folder), folder / "hidden.webm"
    with av.open(str(source)) as whole, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(whole.streams.video[0])
        for number, packet in enumerate(whole.demux(whole.streams.video[0])):
            if packet.size:
                data = bytearray(bytes(packet))
                data[0] &= 0xFF if number not in (5, 17) else ~0x10 & 0xFF
                changed = av.Packet(bytes(data))
                changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
                changed.is_keyframe, changed.stream = packet.is_keyframe, stream
                out.mux(changed)
    expected = [number_in(image) for image in decode_all(path)]
    assert len(expected) == 38
    with open_video(path) as video:
        assert [number_in(frame) for frame in video.read(range(len(video))).numpy()] == expected
        assert [number_in(frame) for frame in video.read([20, 6]).numpy()] == [expected[20], expected[6]]


def test_main_stream_of_several(folder: Path):
    path = folder / "two_streams.mkv"
    with av.open(str(path), "w") as out:
        streams = [out.add_stream("mpeg4", rate=25) for _ in range(2)]
        for stream, width in zip(streams, (WIDTH, 2 * WIDTH), strict=True):
            stream.width, stream.height, stream.pix_fmt = width, HEIGHT, "yuv420p"
        for i in range(10):
            for stream in streams:
                picture = numbered_picture(i + 50 * streams.index(stream), stream.width)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        for stream in streams:
            out.mux(stream.encode())
    frames = read_frames(path, [0, 9])
    assert frames.shape[2] == decode_all(path)[0].shape[1]
    numbers = [number_in(frame) for frame in frames.numpy()]
    assert numbers == [number_in(decode_all(path)[i]) for i in (0, 9)]
    with pytest.raises(VideoError, match="use backend 'auto'"):
        open_video(path, "decord")


@pytest.mark.parametrize(
    ("indices", "error"),
    [([40], IndexError), ([0, -1], IndexError), ([], ValueError)],
)
def test_impossible_indices_are_refused(indices: list[int], error: type[Exception], folder: Path):
    with open_video(RECIPES[0].write(folder)) as video, pytest.raises(error, match=r"plain\.mp4"):
        video.read(indices)


def test_unknown_backend_is_refused(folder: Path):
    with pytest.raises(ValueError, match="'auto', 'decord', 'torchcodec', 'pyav'"):
        open_video(RECIPES[0].write(folder), "opencv")  # type: ignore[arg-type]


def test_distant_frame_is_found_by_seeking(folder: Path, monkeypatch: pytest.MonkeyPatch):
    path = Recipe("many.mp4", frames=600, gop=20, b_frames=2).write(folder)
    decoded, count = demux.decoded, 0

    def counted(*arguments):
        nonlocal count
        for frame in decoded(*arguments):
            count += 1
            yield frame

    monkeypatch.setattr(reader, "decoded", counted)
    with open_video(path, "pyav") as video:
        assert [number_in(frame) for frame in video.read([5, 300, 590]).numpy()] == [5, 300, 590]
    assert 3 <= count <= 70


def test_adjacent_keyframes_are_decoded_in_one_run(folder: Path, monkeypatch: pytest.MonkeyPatch):
    path = Recipe("intra.mp4", frames=40, gop=1).write(folder)
    decode, starts = reader.Video._decode_from, []

    def counted(video, keyframe, container):
        starts.append(keyframe)
        yield from decode(video, keyframe, container)

    monkeypatch.setattr(reader.Video, "_decode_from", counted)
    with open_video(path, "pyav") as video:
        assert [number_in(frame) for frame in video.read([3, 4, 5, 20, 21, 30]).numpy()] == [3, 4, 5, 20, 21, 30]
    assert len(starts) == 3


def test_reading_without_decord(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fast_readers, "_import_decord", lambda: None)
    monkeypatch.setattr(fast_readers, "_import_torchcodec", lambda: None)
    path = RECIPES[0].write(folder)
    with open_video(path) as video:
        assert video.backend == "pyav"
        assert number_in(video.read([17]).numpy()[0]) == 17
    with pytest.raises(VideoError, match="not installed"):
        open_video(path, "decord")


def undecodable(kind: str, folder: Path) -> Path:
    path = folder / f"{kind}.mp4"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not a video\n")
    elif kind == "folder":
        path.mkdir(exist_ok=True)
    elif kind == "playlist":
        path.write_text(f"#EXTM3U\n#EXTINF:1,\n{RECIPES[0].write(folder)}\n#EXT-X-ENDLIST\n")
    elif kind == "audio":
        with av.open(str(path), "w") as out:
            stream = out.add_stream("aac", rate=16000)
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
            silence.sample_rate = 16000
            out.mux(stream.encode(silence))
            out.mux(stream.encode())
    elif kind == "cut_before_index":
        path.write_bytes(RECIPES[0].write(folder).read_bytes()[:2000])
    elif kind == "no_pictures":
        path.write_bytes(without_pictures(Recipe("source.mp4").write(folder).read_bytes()))
    return path


def without_pictures(data: bytes) -> bytes:
    start = data.index(b"mdat") + 4
    size = int.from_bytes(data[start - 8 : start - 4], "big") - 8
    return data[:start] + bytes(size) + data[start + size :]


@pytest.mark.parametrize("backend", ["auto", "pyav", "decord"])
@pytest.mark.parametrize(
    "kind", ["empty", "text", "folder", "playlist", "audio", "cut_before_index", "no_pictures", "missing"]
)
def test_undecodable_files_are_one_line_errors(
    kind: str, backend: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    path = undecodable(kind, tmp_path)
    capfd.readouterr()
    with pytest.raises(VideoError) as caught:
        open_video(path, backend)
    assert caught.value.path == str(path)
    assert str(caught.value) == f"{path}: {caught.value.reason}"
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_video_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(VideoError("a.mp4", "no such file")))
    assert (str(error), error.path, error.reason) == ("a.mp4: no such file", "a.mp4", "no such file")


def check_partial(path: Path) -> int:
    """Read every index of a damaged file, and return the number of frames of a full decoding."""
    expected = decode_all(path)
    with open_video(path) as video:
        frames = video.read(range(len(video))).numpy()
        assert len(frames) == len(video) == len(expected)
    for frame, image in zip(frames, expected, strict=True):
        assert np.array_equal(frame, image)
    return len(expected)


def test_truncated_file_gives_its_frames(tmp_path: Path):
    path = Recipe("fast.mp4", frames=60, b_frames=2, container={"movflags": "faststart"}).write(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 7 // 10])
    assert 10 < check_partial(path) < 60


@pytest.mark.parametrize("packet_number", [13, 25])
def test_lost_packet_does_not_shift_indices(packet_number: int, tmp_path: Path):
    """Missing frames are not counted, in a codec whose packets can be checked."""
    path = Recipe("hurt.mp4", frames=40).write(tmp_path)
    with av.open(str(path), **METADATA_OPTIONS) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][packet_number]
        start = packet.pos
    data = bytearray(path.read_bytes())
    data[start : start + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    assert check_partial(path) == 39


def test_lost_frame_is_replaced_by_previous(tmp_path: Path):
    """If only decoding shows the damage, the length stays."""
    path = Recipe("hurt.mkv", codec="mjpeg", pixels="yuvj420p").write(tmp_path)
    with av.open(str(path), **METADATA_OPTIONS) as container:
        packet = bytes([packet for packet in container.demux(video=0) if packet.size][20])
    path.write_bytes(path.read_bytes().replace(packet, bytes(len(packet))))
    assert len(decode_all(path)) == 39
    with open_video(path) as video:
        assert len(video) == 40
        assert [number_in(frame) for frame in video.read([19, 20, 21, 39]).numpy()] == [19, 19, 21, 39]
        assert number_in(video.read([20]).numpy()[0]) == 19


def pixel_aspect(path: Path) -> float:
    """Return the width of a pixel by its height, 1 if the file does not say."""
    with av.open(str(path), **METADATA_OPTIONS) as container:
        return float(container.streams.video[0].sample_aspect_ratio or 1)


def is_plain(path: Path) -> bool:
    """Return True if pixels are square and the picture is SDR, so that a frame is shown as decoded."""
    with av.open(str(path), **METADATA_OPTIONS) as container:
        frame = next(container.decode(video=0))
        return pixel_aspect(path) == 1 and int(frame.color_trc) not in (16, 18)  # PQ, HLG


def resembles(frame: np.ndarray, decoded: np.ndarray) -> bool:
    """Return True if two pictures of the same height have nearly the same rows of brightness."""
    columns = (np.arange(decoded.shape[1]) * frame.shape[1] / decoded.shape[1]).astype(int)
    return np.corrcoef(frame[:, columns].mean(axis=2).ravel(), decoded.mean(axis=2).ravel())[0, 1] > 0.9


nasty = sorted((SHARED_DATA / "nasty").glob("*"))


@pytest.mark.skipif(not nasty, reason="no collection of difficult files at CLIPVID_SHARED_DATA (or ../shared/data)")
@pytest.mark.parametrize("path", nasty or [Path("none")], ids=lambda path: path.name)
def test_difficult_files(path: Path, capfd: pytest.CaptureFixture[str]):
    try:
        expected = decode_all(path)
    except (av.FFmpegError, ValueError):
        expected = []
    capfd.readouterr()
    if not expected:
        with pytest.raises(VideoError):
            open_video(path)
    for backend in ("pyav", "decord", "torchcodec") if expected else ():
        try:
            video = open_video(path, backend)  # type: ignore[arg-type]
        except VideoError:
            assert backend != "pyav"
            continue
        assert len(video) == len(expected)
        for indices in index_sets(len(expected))[::15]:
            for index, frame in zip(indices[:40], video.read(indices[:40]).numpy(), strict=True):
                if is_plain(path):
                    assert frame.shape == expected[index].shape
                    assert np.abs(frame.astype(int) - expected[index]).max() <= 2
                else:
                    assert frame.shape == (len(frame), round(expected[index].shape[1] * pixel_aspect(path)), 3)
                    assert resembles(frame, expected[index])
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["auto", "pyav"])
def test_ten_thousand_clips_do_not_leak(backend: str, folder: Path):
    path = Recipe("leak.mp4", frames=24, b_frames=2).write(folder, 64, 48)
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("memory and open files are counted in /proc")

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for clip in range(10_000):
        with open_video(path, backend) as video:  # type: ignore[arg-type]
            video.read([clip % 24, 5, 20])
        if clip == 2_000:
            memory, files = resident(), len(list(descriptors.iterdir()))
    assert resident() - memory < 16 << 20
    assert len(list(descriptors.iterdir())) == files
