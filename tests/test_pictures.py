"""Frames as in a player: HDR, non-square pixels, rotated and mirrored pictures."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from clipvid.data.reader import VideoError, open_video, read_frames
from clipvid.decoding.pictures import oriented

FAST = ["decord", "torchcodec"]
# Files with an alpha channel: suffix, codec, pixel format.
TRANSPARENT = {
    "ProRes 4444": (".mov", "prores_ks", "yuva444p10le"),
    "PNG in MOV": (".mov", "png", "rgba"),
    "APNG": (".apng", "apng", "rgba"),
    "FFV1": (".mkv", "ffv1", "yuva420p"),
}


def pq_code(light: np.ndarray) -> np.ndarray:
    """Return PQ codes of light in units of SDR white (203 nits)."""
    power = (light * 203 / 10_000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg_code(light: np.ndarray) -> np.ndarray:
    """Return HLG codes of light on a display of 1,000 nits, in units of SDR white; [..., 3] linear BT.2020."""
    shown = light * 203 / 1000
    luma = (shown @ np.array([0.2627, 0.6780, 0.0593]))[..., None]
    scene = shown * np.where(luma > 0, luma, 1) ** (1 / 1.2 - 1)
    high = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), high)


def to_bt2020(light: np.ndarray) -> np.ndarray:
    matrix = [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]
    return light @ np.array(matrix).T


CURVES = {"smpte2084": pq_code, "arib-std-b67": hlg_code}


def write_hdr(path: Path, colors: np.ndarray, curve: str) -> Path:
    """Write stripes of SDR colors [N, 3] as HDR: BT.2020, 10 bits, limited range."""
    if "libx265" not in av.codecs_available:
        pytest.skip("this build of PyAV has no libx265")
    light = to_bt2020((np.array(colors) / 255) ** 2.2)
    codes = CURVES[curve](light)
    luma = codes @ np.array([0.2627, 0.6780, 0.0593])
    blue, red = (codes[:, 2] - luma) / 1.8814, (codes[:, 0] - luma) / 1.4746
    planes = [64 + 876 * luma, 512 + 896 * blue, 512 + 896 * red]
    options = f"log-level=none:colorprim=bt2020:transfer={curve}:colormatrix=bt2020nc:crf=1"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx265", rate=25, options={"x265-params": options})
        stream.width, stream.height, stream.pix_fmt = 16 * len(colors), 64, "yuv420p10le"
        frame = av.VideoFrame(16 * len(colors), 64, "yuv420p10le")
        for plane, values in zip(frame.planes, planes, strict=True):
            content = np.zeros((plane.height, plane.line_size // 2), "<u2")
            content[:, : plane.width] = np.repeat(values, plane.width // len(colors)).round()
            plane.update(content.tobytes())
        for number in range(3):
            frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


GRAYS = np.repeat(np.linspace(0, 255, 8).round()[:, None], 3, axis=1)
COLORS = np.array([(200, 40, 40), (40, 200, 40), (40, 40, 200), (230, 200, 60), (120, 90, 70), (255, 255, 255)])


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("colors", [GRAYS, COLORS], ids=["grays", "colors"])
def test_hdr_is_mapped_to_sdr(colors: np.ndarray, curve: str, tmp_path: Path):
    path = write_hdr(tmp_path / "hdr.mp4", colors, curve)
    picture = read_frames(path, [1])[0].numpy()
    shown = picture[32, 8::16].astype(int)
    assert np.abs(shown - colors).max() <= 6


@pytest.mark.parametrize("curve", CURVES)
def test_highlights_above_sdr_white_are_white(curve: str, tmp_path: Path):
    path = write_hdr(tmp_path / "bright.mp4", np.full((2, 3), 255 * 1.5), curve)
    assert read_frames(path, [1]).min() >= 250


def write_anamorphic(path: Path, aspect: Fraction, width: int = 64, height: int = 64) -> Path:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        picture = np.zeros((height, width, 3), np.uint8)
        picture[:, : width // 2] = 200
        for _ in range(12):  # shorter MPEG-TS files are not recognized
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize(("aspect", "shown"), [("2", 128), ("1", 64), ("1/2", 32), ("16/15", 68), ("8/9", 57)])
def test_pixels_are_square(aspect: str, shown: int, suffix: str, tmp_path: Path):
    path = write_anamorphic(tmp_path / f"a.{suffix}", Fraction(aspect))
    picture = read_frames(path, [0])[0].numpy()
    assert picture.shape == (64, shown, 3)
    assert picture[:, : shown // 2 - 4].min() > 190
    assert picture[:, shown // 2 + 4 :].max() < 10


def test_shown_size_is_bounded(tmp_path: Path):
    path = write_anamorphic(tmp_path / "wide.mp4", Fraction(60))
    with pytest.raises(VideoError, match="its frames are 3840x64"):
        open_video(path)


MATRICES = {
    "as stored": (1, 0, 0, 1),
    "quarter turn": (0, 1, -1, 0),
    "half turn": (-1, 0, 0, -1),
    "three quarters": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "upside down": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "other diagonal": (0, -1, -1, 0),
}


def as_matrix_says(picture: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Move every pixel by x' = a x + c y, y' = b x + d y, in coordinates around the center."""
    a, b, c, d = matrix
    height, width = picture.shape[:2]
    shown = np.zeros_like(picture if a else picture.swapaxes(0, 1))
    for y in range(height):
        for x in range(width):
            right, down = 2 * x - width + 1, 2 * y - height + 1
            to_x = (a * right + c * down + shown.shape[1] - 1) // 2
            to_y = (b * right + d * down + shown.shape[0] - 1) // 2
            shown[to_y, to_x] = picture[y, x]
    return shown


@pytest.mark.parametrize("kind", MATRICES)
def test_orientation_follows_the_display_matrix(kind: str):
    picture = np.arange(5 * 3 * 3, dtype=np.uint8).reshape(5, 3, 3)
    assert np.array_equal(oriented(picture, MATRICES[kind]), as_matrix_says(picture, MATRICES[kind]))


def with_matrix(data: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """Write a display matrix into the header of an MP4's track."""
    changed = bytearray(data)
    start = changed.index(b"tkhd") + 4 + 40
    for place, value in zip((0, 4, 12, 16), matrix, strict=True):
        changed[start + place : start + place + 4] = (value * 65536).to_bytes(4, "big", signed=True)
    return bytes(changed)


@pytest.mark.parametrize("kind", MATRICES)
def test_rotated_and_mirrored_files(kind: str, tmp_path: Path):
    plain = write_anamorphic(tmp_path / "plain.mp4", Fraction(1), 64, 48).read_bytes()
    stored = read_frames(plain, [0])[0].numpy()
    shown = read_frames(with_matrix(plain, MATRICES[kind]), [0])[0].numpy()
    assert np.array_equal(shown, as_matrix_says(stored, MATRICES[kind]))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("kind", ["mirrored", "upside down", "transposed", "other diagonal", "anamorphic", "hdr"])
def test_fast_readers_refuse_inexact_files(kind: str, backend: str, tmp_path: Path):
    path = tmp_path / "v.mp4"
    if kind == "hdr":
        write_hdr(path, GRAYS, "smpte2084")
    else:
        write_anamorphic(path, Fraction(2 if kind == "anamorphic" else 1))
        path.write_bytes(with_matrix(path.read_bytes(), MATRICES.get(kind, (1, 0, 0, 1))))
    with pytest.raises(VideoError, match="use backend 'auto'"):
        open_video(path, backend)  # type: ignore[arg-type]


@pytest.mark.parametrize("ticks", [lambda i: 40 * i, lambda i: 33 * i + i % 2, lambda i: 40 * (i + i // 10)])
def test_steady_rates_are_not_called_varying(ticks, tmp_path: Path):
    path = tmp_path / "steady.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(60):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = ticks(number), Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    with open_video(path) as video:
        assert not video.has_varying_rate


def half_transparent() -> np.ndarray:
    """Stripes of a light gray with alpha 255, 128 and 0: RGBA [48, 96, 4]."""
    picture = np.full((48, 96, 4), 200, np.uint8)
    picture[..., 3] = np.repeat([255, 128, 0], 32)
    return picture


def write_transparent(path: Path, codec: str, pixels: str) -> None:
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 48, pixels
        for _ in range(3):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(half_transparent(), format="rgba")))
        out.mux(stream.encode())


@pytest.mark.parametrize("kind", [*TRANSPARENT, "images"])
@pytest.mark.parametrize("backend", ["auto", "pyav", *FAST])
def test_transparent_pixels_are_shown_over_black(backend: str, kind: str, tmp_path: Path):
    if kind == "images":
        path = tmp_path
        for number in range(3):
            Image.fromarray(half_transparent()).save(path / f"{number}.png")
    else:
        suffix, codec, pixels = TRANSPARENT[kind]
        path = tmp_path / f"v{suffix}"
        write_transparent(path, codec, pixels)
    try:
        picture = read_frames(path, [1], backend=backend)[0].numpy()  # type: ignore[arg-type]
    except VideoError:
        if backend in FAST:
            return
        raise
    shown = picture[24, 16::32].astype(int)
    assert np.abs(shown - np.array([200, 100, 0])[:, None]).max() <= 4


@pytest.mark.parametrize("field_order", ["tt", "bb", "tb", "bt", "progressive"])
@pytest.mark.parametrize("backend", ["pyav", *FAST])
@pytest.mark.parametrize("flags", ["", "+ildct+ilme"])
def test_interlace_flags_change_no_picture(flags: str, backend: str, field_order: str, tmp_path: Path):
    path = tmp_path / "v.mp4"
    pictures = [np.repeat(np.arange(48)[:, None] % 2 * 120 + 20 * i, 64, 1)[..., None].repeat(3, 2) for i in range(3)]
    with av.open(str(path), "w") as out:
        stream = out.add_stream(
            "mpeg4", rate=25, options={"field_order": field_order} | ({"flags": flags} if flags else {})
        )
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.qmin = stream.codec_context.qmax = 1
        for picture in pictures:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture.astype(np.uint8), format="rgb24")))
        out.mux(stream.encode())
    try:
        shown = read_frames(path, [0, 1, 2], backend=backend).numpy()  # type: ignore[arg-type]
    except VideoError:
        if backend in FAST:
            return
        raise
    assert np.abs(shown.astype(int) - np.stack(pictures)).mean() < 4


LUMA = np.array([0.299, 0.587, 0.114])  # FFmpeg gives pairs of pixels of a reduced picture one color


def gradient(height: int = 48, width: int = 64) -> np.ndarray:
    """Return a picture whose colors change slowly, differently in each direction: RGB [H, W, 3]."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([40 + 2 * columns, 220 - 3 * rows, 60 + rows + columns], axis=-1).astype(np.uint8)


def write_gradient(path: Path, kind: str) -> Path:
    """Write three frames as a video, as one with a display matrix, as an animated WebP or as images."""
    pictures = [Image.fromarray(gradient())] * 3
    if kind == "images":
        for number, picture in enumerate(pictures):
            picture.save(path / f"{number}.png")
        return path
    if kind == "webp":
        changing = [Image.fromarray(np.roll(gradient(), shift, 1)) for shift in range(3)]
        changing[0].save(path / "v.webp", save_all=True, append_images=changing[1:], duration=100, lossless=True)
        return path / "v.webp"
    with av.open(str(path / "v.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "5"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for picture in pictures:
            out.mux(stream.encode(av.VideoFrame.from_image(picture)))
        out.mux(stream.encode())
    target = path / "v.mp4"
    target.write_bytes(with_matrix(target.read_bytes(), MATRICES[kind]))
    return target


@pytest.mark.parametrize("kind", ["as stored", "quarter turn", "mirrored", "webp", "images"])
def test_small_pictures_are_means_over_areas(kind: str, tmp_path: Path):
    with open_video(write_gradient(tmp_path, kind)) as video:
        whole = dict(video.pictures([0, 1, 2]))
        small = list(video.reduced_pictures([0, 1, 2], 16, {1}))
        same = list(video.reduced_pictures([0], 64, ()))
    assert [number for number, _, _ in small] == [0, 1, 2]
    for number, picture, full in small:
        height, width = picture.shape[:2]
        areas = whole[number].reshape(height, 4, width, 4, 3).mean(axis=(1, 3))
        assert max(height, width) == 16
        assert np.abs((picture - areas) @ LUMA).max() <= 2.5
        assert (full is not None) == (number == 1)
    assert np.array_equal(small[1][2], whole[1])
    assert np.abs(same[0][1].astype(int) - whole[0]).max() <= 1


def test_small_pictures_of_fast_readers(tmp_path: Path):
    path = write_gradient(tmp_path, "as stored")
    try:
        video = open_video(path, "decord")
    except VideoError:
        pytest.skip("decord is not installed")
    with video, open_video(path) as slow:
        fast = list(video.reduced_pictures([0, 2], 16, {2}))
        for own, other in zip(fast, slow.reduced_pictures([0, 2], 16, {2}), strict=True):
            assert np.abs((own[1].astype(int) - other[1]) @ LUMA).max() <= 2.5
            assert (own[2] is None) == (other[2] is None)
