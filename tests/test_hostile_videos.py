"""Files that claim to be videos: references to other files, pipes, sizes and counts beyond the limits."""

import io
import os
import random
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from clipvid import InputError
from clipvid.data.reader import VideoError, open_video, read_frames
from clipvid.decoding import demux
from clipvid.decoding.limits import Limits

BACKENDS = ["auto", "pyav", "decord", "torchcodec"]


def write_video(path: Path, frames: int = 12, width: int = 64, height: int = 64, **options: str) -> Path:
    codec, pixels = options.pop("codec", "libx264"), options.pop("pixels", "yuv420p")
    with av.open(str(path), "w", format=options.pop("format", None), options=options) as out:
        stream = out.add_stream(codec, rate=8)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        for number in range(frames):
            picture = np.full((height, width, 3), 10 * number % 250, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_video(tmp_path_factory.mktemp("plain") / "plain.mp4").read_bytes()


@pytest.fixture(scope="module")
def fragments(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("fragments") / "fragments.mp4"
    return write_video(path, movflags="frag_keyframe+empty_moov+default_base_moof").read_bytes()


def patched(data: bytes, box: bytes, *values: tuple[int, int]) -> bytes:
    """Replace 32-bit numbers at offsets from the name of the first `box`."""
    changed = bytearray(data)
    start = data.index(box)
    for offset, value in values:
        changed[start + offset : start + offset + 4] = value.to_bytes(4, "big")
    return bytes(changed)


PLAYLISTS = {
    "ffconcat": "ffconcat version 1.0\nfile victim.mp4\n",
    "ffconcat after a mark": "\ufeffffconcat version 1.0\nfile victim.mp4\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nvictim.ts\n#EXT-X-ENDLIST\n",
    "hls without end": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nvictim.ts\n",
    "dash": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period/></MPD>\n',
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    "plain text": "once upon a time\n" * 100,
    "letters of other scripts": "очень длинный текст\n" * 100,
    "subtitles": "1\n00:00:00,000 --> 00:00:01,000\nhello\n",
    "concat with binary": "ffconcat version 1.0\nfile victim.mp4\n" + "\0\x01" * 300,
    "hls with binary": "#EXTM3U\n#EXTINF:1,\nvictim.ts\n\0\0\n",
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_playlist_opens_no_other_file(kind: str, backend: str, tmp_path: Path):
    for victim in ("victim.mp4", "victim.ts"):
        os.mkfifo(tmp_path / victim)  # FFmpeg would block on these
    for name in ("list.mp4", "list.m3u8"):
        path = tmp_path / name
        path.write_text(PLAYLISTS[kind])
        for source in (path, path.read_bytes(), io.BytesIO(path.read_bytes())):
            with pytest.raises(VideoError, match="not a readable video"):
                open_video(source, backend)  # type: ignore[arg-type]


FORMATS = ["concat", "hls", "dash", "image2", "lavfi", "tty", "srt", "webm_dash_manifest", "ffmetadata", "wav", "mp3"]


@pytest.mark.parametrize("name", FORMATS)
def test_demuxers_that_open_files_are_excluded(name: str):
    assert name not in demux.ALLOWED_FORMATS.split(",")


def test_format_is_refused_before_its_demuxer_runs(tmp_path: Path):
    """The list of formats is effective without the check for text."""
    (tmp_path / "victim.mp4").write_bytes(b"")
    text = PLAYLISTS["ffconcat"].encode()
    calls: list[str] = []
    with pytest.raises(av.FFmpegError):
        av.open(
            io.BytesIO(text),
            container_options={"format_whitelist": demux.ALLOWED_FORMATS},
            io_open=lambda url, *_: calls.append(url),
        )
    assert calls == []


@pytest.mark.parametrize(
    "name", ["%d.mp4", "100%.mp4", "a%03d.mkv", "concat:a|b.mp4", "-.mp4", "a\nb.mp4", "a?b#c.mp4"]
)
def test_allowed_formats_exist_in_ffmpeg(name: str, tmp_path: Path):
    path = write_video(tmp_path / "v.mp4", codec="mpeg4", format="matroska" if name.endswith("mkv") else "mp4")
    path.rename(tmp_path / name)
    with open_video(tmp_path / name) as video:
        assert len(video) == 12


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this platform")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "device", "folder with a pipe"])
def test_pipes_and_devices_are_refused_at_once(kind: str, backend: str, tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.png")
    path = tmp_path / "pipe.png"
    if kind == "link to a pipe":
        path = tmp_path / "link.mp4"
        path.symlink_to("pipe.png")
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "folder with a pipe":
        path = tmp_path
    with pytest.raises(VideoError, match="it is not a regular file"), open_video(path, backend) as video:  # type: ignore[arg-type]
        video.read([0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("width", "height"), [(160, 120), (40, 2), (8, 400)])
def test_frames_of_too_many_pixels_are_refused(
    width: int, height: int, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = write_video(tmp_path / "large.mkv", 2, width, height, codec="ffv1")
    monkeypatch.setenv("CLIPVID_MAX_PIXELS", "79")
    with pytest.raises(VideoError, match=rf"its frames are {width}x{height}"):
        open_video(path, backend)  # type: ignore[arg-type]


def test_frames_that_grow_midstream_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    small, large = (write_video(tmp_path / f"{side}.h264", 5, side, side).read_bytes() for side in (64, 512))
    (tmp_path / "grows.h264").write_bytes(small + large)
    with open_video(tmp_path / "grows.h264") as video:
        assert len(video) == 10
    monkeypatch.setenv("CLIPVID_MAX_PIXELS", str(100 * 100))
    with open_video(tmp_path / "grows.h264") as video:
        assert len(video) == 5


@pytest.mark.parametrize(("width", "height"), [(6000, 2), (8, 6000)])
def test_strips_are_refused(width: int, height: int, tmp_path: Path):
    path = write_video(tmp_path / "strip.mkv", 2, width, height, codec="ffv1")
    with pytest.raises(VideoError, match="one side is over 50 times the other"):
        open_video(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "tiff", "ppm"])
def test_frame_folder_checks_sizes_before_decoding(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Image.new("RGB", (64, 64)).save(tmp_path / f"1.{suffix}")
    assert read_frames(tmp_path, [0]).shape == (1, 64, 64, 3)
    monkeypatch.setenv("CLIPVID_MAX_PIXELS", "4095")
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("the pixels are decoded"))
    with pytest.raises(VideoError, match=rf"1\.{suffix} is not a readable image .*64x64"):
        read_frames(tmp_path, [0])


def test_frames_of_a_folder_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for number in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    monkeypatch.setenv("CLIPVID_MAX_FRAMES", "2")
    with pytest.raises(VideoError, match="CLIPVID_MAX_FRAMES"):
        open_video(tmp_path)


MANY = 0x0FFFFFFF
BOMBS = {
    "stsz": [(b"stsz", (8, 1), (12, MANY))],
    "stts": [(b"stts", (12, MANY))],
    "stsz and stts": [(b"stsz", (8, 1), (12, MANY)), (b"stts", (12, MANY)), (b"stsc", (16, MANY))],
    "stsz of sound": [(b"stsz", (8, 1), (12, MANY)), (b"hdlr", (12, int.from_bytes(b"soun", "big")))],
    "trun": [(b"trun", (4, 1), (8, MANY))],
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", BOMBS)
def test_declared_counts_are_bounded_before_ffmpeg(
    kind: str, backend: str, plain: bytes, fragments: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = fragments if kind == "trun" else plain
    for box, *values in BOMBS[kind]:
        data = patched(data, box, *values)
    path = tmp_path / "bomb.mp4"
    path.write_bytes(data)
    monkeypatch.setattr(av, "open", lambda *_, **__: pytest.fail("FFmpeg opens the file"))
    for source in (path, data):
        with pytest.raises(VideoError, match=r"declares \d[\d,]* frames"):
            open_video(source, backend)  # type: ignore[arg-type]


def test_many_edits_are_refused(plain: bytes, tmp_path: Path):
    """Every edit repeats samples in FFmpeg's memory."""
    start = plain.index(b"edts") - 4
    size = int.from_bytes(plain[start : start + 4], "big")
    entry = (1000).to_bytes(4, "big") + (0).to_bytes(4, "big") + (1 << 16).to_bytes(4, "big")
    elst = b"elst" + bytes(4) + (5000).to_bytes(4, "big") + entry * 5000
    elst = (len(elst) + 4).to_bytes(4, "big") + elst
    data = bytearray(plain[:start] + (len(elst) + 8).to_bytes(4, "big") + b"edts" + elst + plain[start + size :])
    for box in (b"moov", b"trak"):
        at = data.index(box) - 4
        grown = int.from_bytes(data[at : at + 4], "big") + len(elst) + 8 - size
        data[at : at + 4] = grown.to_bytes(4, "big")
    with pytest.raises(VideoError, match="5,000 edits"):
        open_video(bytes(data))


def test_real_frames_are_counted_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    paths = [write_video(tmp_path / name, codec="mpeg4") for name in ("a.mkv", "a.avi", "a.mp4", "a.ts")]
    monkeypatch.setenv("CLIPVID_MAX_FRAMES", "12")
    assert [len(open_video(path)) for path in paths] == [12] * 4
    monkeypatch.setenv("CLIPVID_MAX_FRAMES", "11")
    demux.scan_unchanged.cache_clear()
    for path in paths:
        with pytest.raises(VideoError, match="CLIPVID_MAX_FRAMES"):
            open_video(path)


def test_long_decoding_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_video(tmp_path / "long.mkv", frames=100)
    with open_video(path, "pyav") as video:
        monkeypatch.setattr("clipvid.decoding.limits.time.thread_time", iter(range(0, 10_000, 20)).__next__)
        with pytest.raises(VideoError, match="CLIPVID_MAX_SECONDS"):
            video.read(range(100))
        demux.scan_unchanged.cache_clear()
        with pytest.raises(VideoError, match="CLIPVID_MAX_SECONDS"):
            open_video(path)


@pytest.mark.parametrize("text", ["", "0", "-1", "many", "1e6", "9" * 5000, "٣"])
def test_limits_are_positive_integers(text: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CLIPVID_MAX_PIXELS", text)
    with pytest.raises(InputError, match="CLIPVID_MAX_PIXELS"):
        Limits.current()


READ_ALL = """
import sys
from pathlib import Path
from clipvid.data.reader import VideoError, open_video
read = refused = 0
for path in sorted(Path(sys.argv[1]).iterdir()):
    print(path.name, flush=True)
    try:
        with open_video(path) as video:
            video.read([0, len(video) // 2, len(video) - 1])
            video.frames_between(0.2, 0.9)
        read += 1
    except VideoError:
        refused += 1
print("read", read, "refused", refused)
"""


def mutate(data: bytes, chance: random.Random) -> bytes:
    """Change, repeat, cut out or enlarge a few parts of a file, mostly in its header."""
    changed = bytearray(data)
    header = max(data.find(b"moov"), 0)
    for _ in range(chance.choice([1, 1, 2, 5])):
        at = chance.randrange(header, len(changed)) if chance.random() < 0.8 else chance.randrange(len(changed))
        match chance.randrange(5):
            case 0:
                changed[at] = chance.randrange(256)
            case 1:
                changed[at : at + 4] = chance.choice([b"\xff" * 4, b"\x7f\xff\xff\xff", bytes(4), b"\x0f\xff\xff\xff"])
            case 2:
                del changed[at : at + chance.randrange(1, 40)]
            case 3:
                changed[at:at] = changed[at : at + chance.randrange(1, 40)]
            case _:
                changed[at] ^= 1 << chance.randrange(8)
    return bytes(changed)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "fragments"])
@pytest.mark.parametrize("seed", range(2))
def test_mutated_videos_never_crash(kind: str, seed: int, request: pytest.FixtureRequest, tmp_path: Path):
    """Every file is read or refused, within a limit of memory; none aborts or hangs."""
    resource = pytest.importorskip("resource")
    data, chance = request.getfixturevalue(kind), random.Random(seed)
    for number in range(100):
        (tmp_path / f"{number:03}.mp4").write_bytes(mutate(data, chance))
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (3 << 30, 3 << 30)),
    )
    assert done.returncode == 0, f"{done.stdout[-60:]} {done.stderr[-500:]}"
    read, refused = (int(word) for word in done.stdout.split()[-3::2])
    assert read + refused == 100
    assert min(read, refused) > 5
