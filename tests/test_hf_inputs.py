"""Inputs of the predictor, and of transformers' pipeline and video processor: kinds of video, options, types."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_frames, shake_adapters
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForVideoClassification, AutoVideoProcessor, pipeline

import clipvid
from clipvid.data.reader import VideoError, open_video
from clipvid.data.synthetic.world import WorldConfig, build_world
from clipvid.hub.loading import from_pretrained
from clipvid.inference.predictor import Predictor

LABELS = ["walking", "running", "jumping"]
WORLD = WorldConfig(
    objects=("ball", "star"), motions=("horizontal",), num_frames=20, image_size=48,
    train_per_class=1, val_per_class=0, test_per_class=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[Path]:
    return sorted(build_world(WORLD, tmp_path_factory.mktemp("world"), progress=False).rglob("*.mp4"))


@pytest.fixture(scope="module")
def saved(make_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    shake_adapters(make_model("ila", LABELS)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classify(saved):
    return pipeline("video-classification", model=str(saved), device="cpu")


def frames_of(path: Path) -> torch.Tensor:
    with open_video(path) as video:
        return video.read(range(len(video)))


# One video in all supported forms.
FORMS = {
    "string": str,
    "path": lambda path: path,
    "file URL": lambda path: path.absolute().as_uri(),
    "bytes": lambda path: path.read_bytes(),
    "file object": lambda path: path.open("rb"),
    "tensor [T, H, W, C]": frames_of,
    "tensor [T, C, H, W]": lambda path: frames_of(path).movedim(-1, 1).contiguous(),
    "array [T, H, W, C]": lambda path: frames_of(path).numpy(),
    "array [T, C, H, W]": lambda path: frames_of(path).movedim(-1, 1).numpy(),
    "list of arrays": lambda path: list(frames_of(path).numpy()),
    "list of tensors [C, H, W]": lambda path: list(frames_of(path).movedim(-1, 1)),
    "list of PIL images": lambda path: [Image.fromarray(frame) for frame in frames_of(path).numpy()],
    "tuple of PIL images": lambda path: tuple(Image.fromarray(frame) for frame in frames_of(path).numpy()),
}


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_of_a_video_give_equal_classes(saved, classify, videos, form):
    expected = classify(str(videos[0]))
    predictor = Predictor(from_pretrained(saved))
    assert classify(FORMS[form](videos[0])) == expected
    assert predictor(FORMS[form](videos[0])) == expected
    assert predictor([FORMS[form](videos[0]), str(videos[1])]) == [expected, predictor(str(videos[1]))]
    assert classify([FORMS[form](videos[0]), str(videos[1])]) == [expected, classify(str(videos[1]))]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (3, "is of type int; expected a path"),
        (None, "is of type NoneType; expected a path"),
        (Image.new("RGB", (8, 8)), "a single image is not a video"),
        (np.zeros((8, 8, 3), np.uint8), "a single image is not a video"),
        (np.zeros((4, 8, 8, 3), np.float32), "expected uint8"),
        (np.zeros((0, 8, 8, 3), np.uint8), "at least one frame"),
        ([Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))], "different sizes or types"),
        (np.zeros((4, 8), np.uint8), "expected uint8"),
    ],
)
def test_invalid_video_is_refused_in_one_line(saved, inputs, message):
    for use in (Predictor(from_pretrained(saved)), AutoVideoProcessor.from_pretrained(saved)):
        with pytest.raises(clipvid.InputError, match=message):
            use(inputs)


@pytest.mark.parametrize("url", ["file:///no/such/file.mp4", "http://127.0.0.1:9/a.mp4"])
def test_url_without_a_video_is_refused(saved, url):
    with pytest.raises(VideoError, match=r"no such file|cannot be downloaded"):
        Predictor(from_pretrained(saved))(url)


def test_batch_size_does_not_change_scores(classify, videos):
    inputs = [str(path) for path in videos] + [frames_of(videos[0])]
    one_by_one = [classify(video) for video in inputs]
    for batch_size in (2, 3, 8):
        actual = classify(inputs, batch_size=batch_size)
        for left, right in zip(actual, one_by_one, strict=True):
            assert [item["label"] for item in left] == [item["label"] for item in right]
            assert [item["score"] for item in left] == pytest.approx([item["score"] for item in right], rel=1e-5)
    assert len(list(classify(iter_videos(inputs), batch_size=2))) == len(inputs)


def iter_videos(inputs):
    yield from inputs


def test_pipeline_options(classify, videos, saved):
    video = str(videos[0])
    frames, size = frames_of(videos[0]), 64
    model = from_pretrained(saved)
    processor = AutoVideoProcessor.from_pretrained(saved)
    strided = processor(frames[[len(frames) // 2 - 4, len(frames) // 2, len(frames) // 2 + 4]])
    assert strided["pixel_values_videos"].shape == (1, 3, 3, size, size)
    clips = {
        rate: processor(video, frame_sampling_rate=rate)["pixel_values_videos"] for rate in (1, 4)
    }  # three frames with `rate` between them
    assert not torch.equal(clips[1], clips[4])
    for rate, clip in clips.items():
        expected = model(clip).logits[0].softmax(-1).max().item()
        assert classify(video, frame_sampling_rate=rate)[0]["score"] == pytest.approx(expected, rel=1e-5)
    assert processor(video, num_frames=7)["pixel_values_videos"].shape[1] == 7
    raw = {item["label"]: item["score"] for item in classify(video, function_to_apply="none")}
    logits = model(processor(video)["pixel_values_videos"]).logits[0]
    assert list(raw.values()) == pytest.approx(sorted(logits.tolist(), reverse=True), rel=1e-4)
    sigmoid = classify(video, function_to_apply="sigmoid", top_k=1)
    assert sigmoid[0]["score"] == pytest.approx(logits.sigmoid().max().item(), rel=1e-4)


def test_fps_option(saved, videos):
    processor = AutoVideoProcessor.from_pretrained(saved)
    with open_video(videos[0]) as video:
        rate = video.fps
    by_rate = processor(videos[0], fps=rate / 3)["pixel_values_videos"]
    assert torch.equal(by_rate, processor(videos[0], frame_sampling_rate=3)["pixel_values_videos"])
    with pytest.raises(clipvid.InputError, match="the frame rate of frames in memory is unknown"):
        processor(frames_of(videos[0]), fps=2)
    with pytest.raises(clipvid.InputError, match="exclude each other"):
        processor(videos[0], fps=2, frame_sampling_rate=2)


@pytest.mark.parametrize(
    "options",
    [
        {"size": {"height": 32, "width": 32}}, {"size": {"shortest_edge": 64}}, {"size": 32},
        {"crop_size": {"height": 32, "width": 32}}, {"do_resize": False}, {"do_normalize": True}, {"do_rescale": True},
        {"do_sample_frames": False}, {"do_center_crop": False}, {"image_mean": [0.0, 0.0, 0.0]},
        {"return_tensors": "tf"}, {"num_frame": 3}, {"fps": 0}, {"frame_sampling_rate": -1}, {"video_metadata": {}},
    ],
    ids=str,
)  # fmt: skip
def test_processor_names_unsupported_options(saved, videos, options):
    (name,) = options
    with pytest.raises(clipvid.InputError, match=f"^{name}="):
        AutoVideoProcessor.from_pretrained(saved)(videos[0], **options)


def test_processor_accepts_options_without_effect(saved, videos):
    processor = AutoVideoProcessor.from_pretrained(saved)
    expected = processor(videos[0])["pixel_values_videos"]
    same = {"size": {"height": 64, "width": 64}, "do_resize": True, "do_normalize": False, "do_sample_frames": True}
    assert torch.equal(processor(videos[0], **same, do_pad=None)["pixel_values_videos"], expected)
    actual = processor([videos[0]], return_tensors="np")["pixel_values_videos"]
    assert isinstance(actual, np.ndarray)
    assert np.array_equal(actual, expected.numpy())


# Floating types and devices


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32", torch.bfloat16, "auto", None])
@pytest.mark.parametrize("option", ["dtype", "torch_dtype"])
def test_dtype_option(saved, name, option):
    model = AutoModelForVideoClassification.from_pretrained(saved, **{option: name})
    expected = torch.float32 if name in ("auto", None) else getattr(torch, str(name).removeprefix("torch."))
    assert {value.dtype for value in model.parameters()} == {expected}


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}, torch.device("cpu")])
def test_device_map_of_one_device(saved, device_map):
    model = AutoModelForVideoClassification.from_pretrained(saved, device_map=device_map, attn_implementation="sdpa")
    assert model.device.type == ("cuda" if device_map == "auto" and torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "int8"}, {"dtype": "bfloat"}, {"dtype": torch.int64}, {"device_map": "balanced"},
        {"device_map": {"clip.encoder": 0, "clip.text": "cpu"}}, {"attn_implementation": "flash_attention_2"},
        {"attn_implementation": "eager"}, {"quantization_config": {"load_in_8bit": True}}, {"variant": "fp16"},
    ],
    ids=str,
)  # fmt: skip
def test_model_names_unsupported_options(saved, options):
    (name,) = options
    with pytest.raises(clipvid.InputError, match=name):
        clipvid.ClipVidForVideoClassification.from_pretrained(saved, **options)


def test_auto_model_refuses_other_attention(saved):
    with pytest.raises(clipvid.InputError, match="attn_implementation='eager'"):
        AutoModelForVideoClassification.from_pretrained(saved, attn_implementation="eager")


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("spec", [{}, {"tune": ["full"]}, {"tune": ["lora"]}, {"tune": ["adapters", "text"]}], ids=str)
@pytest.mark.parametrize("is_public", [True, False], ids=["named", "embedded"])
def test_lowered_model_saves_and_loads_again(make_model, tiny_folder, tmp_path, dtype, spec, is_public):
    start = shake_adapters(make_model("ila", LABELS, is_public=is_public, **spec))
    start.save_pretrained(tmp_path / "start")
    model = from_pretrained(tmp_path / "start").to(dtype)
    assert model.has_base_backbone == start.has_base_backbone
    model.save_pretrained(tmp_path / "lowered")
    actual = from_pretrained(tmp_path / "lowered")
    for name, value in actual.trained_state().items():
        assert torch.equal(value, model.state_dict()[name].to(value.dtype)), name
    if is_public:  # the public weights come back whole
        assert actual.base_fingerprint() == start.base_fingerprint()
    stored = load_file(tmp_path / "lowered" / "model.safetensors")
    assert {value.dtype for value in stored.values() if value.is_floating_point()} <= {dtype}
    again = AutoModelForVideoClassification.from_pretrained(tmp_path / "lowered", dtype=dtype)
    frames = random_frames().to(dtype)
    assert torch.equal(again.clip.encode_video(frames), model.encode_video(frames))
    again.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() >= stored.keys()
