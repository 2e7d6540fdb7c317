"""Frames as pixels and as floats: normalization and refusals."""

import json

import pytest
import torch
from conftest import random_frames

from clipvid.evaluation.weight_space import WeightSpace, zero_shot_model
from clipvid.hub.loading import from_pretrained
from clipvid.model.config import ModelConfig
from clipvid.model.pixels import normalize

LABELS = ["walking", "running"]
PIXELS = torch.randint(256, (2, 3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
REFUSED = {
    "scaled to 0..1": PIXELS / 255,
    "0..255": PIXELS.float(),
    "half precision": (PIXELS / 255).half(),
    "black": torch.zeros(2, 3, 3, 64, 64),
    "one value too large": random_frames().index_fill(0, torch.tensor([1]), 9.0),
    "infinite": torch.full((2, 3, 3, 64, 64), torch.inf),
    "int64": PIXELS.long(),
    "bool": PIXELS > 7,
}


@pytest.mark.parametrize("frames", REFUSED.values(), ids=REFUSED)
def test_unnormalized_floats_are_refused(make_model, frames):
    model = make_model(labels=LABELS)
    for call in (model, model.encode_video, model.normalize):
        with pytest.raises(ValueError, match="uint8 pixels"):
            call(frames)


@torch.no_grad()
@pytest.mark.parametrize("part", [slice(0, 256), slice(0, 1), slice(255, 256)], ids=["all", "black", "white"])
def test_normalized_pixels_pass_and_equal_the_pixels(make_model, part):
    model = make_model(labels=LABELS)
    pixels = PIXELS.clamp(part.start, part.stop - 1)
    floats = model.normalize(pixels)
    assert torch.equal(model(floats).logits, model(pixels).logits)
    assert torch.equal(model.encode_video(floats), model.encode_video(pixels))
    mixed = 0.3 * floats + 0.7 * floats.flip(0)
    assert torch.equal(model.normalize(mixed), mixed)


@torch.no_grad()
def test_normalized_argument_skips_the_check(make_model):
    model = make_model(labels=LABELS)
    frames = 9 * random_frames()
    assert torch.equal(model(frames, normalized=True).video_features, model.encode_video(frames, normalized=True))


def test_old_spelling_warns_and_works(make_model):
    model = make_model()
    with pytest.warns(DeprecationWarning, match="use normalize"):
        assert torch.equal(model.normalise(PIXELS), model.normalize(PIXELS))


def test_pixels_are_divided_as_floats() -> None:
    """ONNX divides uint8 by uint8 without a remainder, and torch's older exporter writes such a division as it is."""
    mean, std = torch.full((3, 1, 1), 0.5), torch.full((3, 1, 1), 0.25)
    pixels = torch.randint(0, 256, (1, 2, 3, 4, 4), dtype=torch.uint8)
    graph = torch.jit.trace(lambda frames: normalize(frames, mean, std), (pixels,)).graph
    division = next(node for node in graph.nodes() if node.kind() == "aten::div")
    assert next(division.inputs()).type().dtype() == torch.float32
    assert torch.equal(normalize(pixels, mean, std), (pixels / 255 - mean) / std)


@pytest.mark.parametrize("adapter", ["none", "ila", "shift"])
def test_older_onnx_exporter_gives_the_same_logits(adapter: str, make_model, tmp_path) -> None:
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    model = make_model(adapter, labels=["a", "b"])

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, frames: torch.Tensor) -> torch.Tensor:
            return self.model(frames).logits

    frames = torch.randint(0, 256, (2, 3, 3, 64, 64), dtype=torch.uint8)
    torch.onnx.export(Logits(), (frames,), str(tmp_path / "m.onnx"), dynamo=False)
    session = runtime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    (actual,) = session.run(None, {session.get_inputs()[0].name: frames.numpy()})
    torch.testing.assert_close(torch.from_numpy(actual), model(frames).logits, rtol=1e-4, atol=1e-4)


STATISTICS = {"pixel_mean": (0.485, 0.456, 0.406), "pixel_std": (0.229, 0.224, 0.225)}


@torch.no_grad()
def test_pixel_statistics_of_the_model_replace_those_of_clip(make_model, tmp_path):
    plain, model = make_model(labels=LABELS), make_model(labels=LABELS, **STATISTICS)
    mean, std = (torch.tensor(values)[:, None, None] for values in STATISTICS.values())
    expected = plain((PIXELS / 255 - mean) / std, normalized=True).logits
    torch.testing.assert_close(model(PIXELS).logits, expected)
    assert not torch.allclose(model(PIXELS).logits, plain(PIXELS).logits)
    model.save_pretrained(tmp_path)
    assert torch.equal(from_pretrained(tmp_path)(PIXELS).logits, model(PIXELS).logits)
    record = json.loads((tmp_path / "video_preprocessor_config.json").read_text())
    assert record["image_mean"] == list(STATISTICS["pixel_mean"])
    assert record["image_std"] == list(STATISTICS["pixel_std"])


@torch.no_grad()
def test_zero_shot_clip_keeps_the_pixel_statistics_of_clip(make_model):
    plain, model = make_model(labels=LABELS), make_model("st_adapter", LABELS, **STATISTICS)
    assert torch.equal(zero_shot_model(model)(PIXELS).logits, plain(PIXELS).logits)
    assert WeightSpace(model).at(0)(PIXELS).logits.isfinite().all()


@pytest.mark.parametrize(
    ("option", "values"),
    [("pixel_mean", (123.675, 116.28, 103.53)), ("pixel_std", (0.2, 0.0, 0.2)), ("pixel_std", (58.395, 57.12, 57.375))],
)
def test_pixel_statistics_on_another_scale_are_refused(option, values):
    with pytest.raises(ValueError, match=f"{option}=.*expected values"):
        ModelConfig(**{option: values})
