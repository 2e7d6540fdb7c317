"""Exported files compute what the model computes, for any batch and number of frames, and refuse what they cannot."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import shake_adapters
from torch import Tensor

from clipvid import InputError, RunError
from clipvid.adapters import ADAPTERS
from clipvid.data.preprocessing import Preprocessing
from clipvid.inference.export.formats import RECORD_FILE, export_model
from clipvid.inference.exported.onnx_model import OnnxModel, read_record
from clipvid.inference.exported.record import ExportRecord
from clipvid.inference.exported.texts import read_texts
from clipvid.model.video_clip import VideoCLIP

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

LABELS = ["a ball", "a box", "a star"]
GREEDY = {"name": "ata", "solver": "greedy"}
FIXED_FRAMES = ("ata",)
QUICK = ("none",)
CHANGED = Preprocessing(by="time", resize="squash")
BATCHES, FRAMES = (1, 2, 7), (4, 5, 8, 16)


def clips_of(batch: int, num_frames: int, size: int = 64) -> Tensor:
    """Return random clips uint8 [B, T, S, S, 3]."""
    generator = torch.Generator().manual_seed(batch * 100 + num_frames)
    return torch.randint(256, (batch, num_frames, size, size, 3), dtype=torch.uint8, generator=generator)


@torch.no_grad()
def expected(model: VideoCLIP, clips: Tensor) -> np.ndarray:
    return model(clips.permute(0, 1, 4, 2, 3)).logits.softmax(dim=-1).numpy()


def check_onnx(model: VideoCLIP, path: Path, frames: tuple[int, ...]) -> None:
    exported = OnnxModel(path, threads=1)
    for batch, num_frames in itertools.product(BATCHES, frames):
        clips = clips_of(batch, num_frames)
        probabilities = exported(clips.numpy())
        assert probabilities.dtype == np.float32
        np.testing.assert_allclose(probabilities, expected(model, clips), atol=1e-4)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ADAPTERS]
)
def test_onnx_equals_the_model_for_any_batch_and_number_of_frames(name: str, make_model, tmp_path: Path):
    model = shake_adapters(make_model(GREEDY if name == "ata" else name, LABELS, num_frames=8))
    frames = (8,) if name in FIXED_FRAMES else FRAMES
    done = export_model(model, tmp_path / "m.onnx", frames="fixed" if name in FIXED_FRAMES else "free")
    assert done.difference < 1e-4
    assert read_record(tmp_path / "m.onnx") == done.record
    assert done.record.classes == tuple(LABELS)
    check_onnx(model, tmp_path / "m.onnx", frames)


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{"pooling": "mit"}, {"pooling": {"name": "mit", "positions": 12}}], ids=str)
@pytest.mark.parametrize("head", [{"name": "text", "prompt_layers": 1}, "linear", "cosine", "class_token"], ids=str)
def test_onnx_equals_the_model_for_every_head_and_pooling(head, fields, make_model, tmp_path: Path):
    model = make_model("st_adapter", LABELS, num_frames=8, head=head, **fields)
    done = export_model(model, tmp_path / "m.onnx", frames="free")
    longest = 12 if "positions" in str(fields) else 512
    assert done.record.frame_range == (4, longest)
    check_onnx(model, tmp_path / "m.onnx", tuple(count for count in FRAMES if count <= longest))


@pytest.mark.parametrize("name", ["none", pytest.param("sifa", marks=pytest.mark.slow)])
def test_torch_export_loads_and_equals_the_model(name: str, make_model, tmp_path: Path):
    model = shake_adapters(make_model(name, LABELS, num_frames=8))
    done = export_model(model, tmp_path / "m.pt2", "torch", frames="free")
    extra = {RECORD_FILE: ""}
    program = torch.export.load(tmp_path / "m.pt2", extra_files=extra).module()
    assert ExportRecord.from_json(extra[RECORD_FILE], "m.pt2") == done.record
    for batch, num_frames in itertools.product(BATCHES, FRAMES):
        clips = clips_of(batch, num_frames)
        np.testing.assert_allclose(program(clips).detach().numpy(), expected(model, clips), atol=1e-5)
    assert not [name for name in program.state_dict() if "token_embedding" in name]


def test_text_features_are_an_input(make_model, tmp_path: Path):
    model = make_model("none", LABELS, num_frames=4, head={"name": "text", "prompt_layers": 1})
    done = export_model(model, tmp_path / "m.onnx", text="input")
    assert done.record.classes is None
    assert done.texts == tmp_path / "m.texts.safetensors"
    names, features = read_texts(done.texts)
    assert names == LABELS
    exported, clips = OnnxModel(tmp_path / "m.onnx", threads=1), clips_of(2, 4)
    np.testing.assert_allclose(exported(clips.numpy(), features), expected(model, clips), atol=1e-4)
    model.set_labels(["something", "else", "and", "more"])
    other = model.label_features.numpy()
    np.testing.assert_allclose(exported(clips.numpy(), other), expected(model, clips), atol=1e-4)
    with pytest.raises(InputError, match="text is missing"):
        exported(clips.numpy())
    with pytest.raises(InputError, match=r"text is \[4, 3\]; expected \[K, 32\]"):
        exported(clips.numpy(), other[:, :3])


def test_a_single_class_and_lora_can_be_exported(make_model, tmp_path: Path):
    model = make_model("none", ["one"], num_frames=4, tune=[{"name": "lora", "rank": 2}])
    for name, parameter in model.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export_model(model, tmp_path / "m.pt2", "torch", text="input")
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(value.equal(after[name]) for name, value in before.items())
    _, features = read_texts(tmp_path / "m.texts.safetensors")
    program, clips = torch.export.load(tmp_path / "m.pt2").module(), clips_of(3, 4)
    several = torch.cat([torch.from_numpy(features), torch.randn(2, 32)])
    with torch.no_grad():
        video = model.encode_video(clips.permute(0, 1, 4, 2, 3))
        cosines = torch.nn.functional.normalize(video, dim=-1) @ torch.nn.functional.normalize(several, dim=-1).T
        scores = (model.text.logit_scale * cosines).softmax(dim=-1)
    torch.testing.assert_close(program(clips, several).detach(), scores, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("dtype", "share"), [pytest.param("float16", 0.6, marks=pytest.mark.slow), ("int8", 0.6)])
def test_smaller_weights_make_smaller_files(dtype, share: float, make_model, tmp_path: Path):
    model = make_model("none", LABELS, num_frames=4)
    export_model(model, tmp_path / "full.onnx")
    done = export_model(model, tmp_path / "small.onnx", dtype=dtype)
    assert (tmp_path / "small.onnx").stat().st_size < share * (tmp_path / "full.onnx").stat().st_size
    assert read_record(tmp_path / "small.onnx").precision == dtype
    clips = clips_of(2, 4)
    probabilities = OnnxModel(tmp_path / "small.onnx", threads=1)(clips.numpy())
    assert np.abs(probabilities - expected(model, clips)).max() < 0.1
    assert done.difference < 0.1


def test_float16_is_compared_with_the_model(make_model, tmp_path: Path):
    model = make_model("none", LABELS, num_frames=4)
    done = export_model(model, tmp_path / "half.pt2", format="torch", dtype="float16")
    program = torch.export.load(tmp_path / "half.pt2").module()
    assert done.difference > 0
    assert np.abs(program(clips_of(2, 4)).detach().numpy() - expected(model, clips_of(2, 4))).max() < 0.01
    with torch.no_grad():
        mlp = model.encoder.layers[0].block.mlp
        first, last = [module for module in mlp.modules() if isinstance(module, torch.nn.Linear)]
        first.weight *= 1e6
        first.bias *= 1e6
        last.weight /= 1e6
    with pytest.raises(RunError, match="exceed the range of float16; use --dtype float32"):
        export_model(model, tmp_path / "wide.pt2", format="torch", dtype="float16")
    assert not (tmp_path / "wide.pt2").exists()
    assert export_model(model, tmp_path / "wide.pt2", format="torch").difference < 1e-4


def test_axes_and_outputs_are_named(make_model, tmp_path: Path):
    export_model(make_model("none", LABELS, num_frames=4), tmp_path / "m.onnx", text="input", frames="free")
    assert b"clipvid/model" not in (tmp_path / "m.onnx").read_bytes()  # paths of this machine
    graph = onnx.load(tmp_path / "m.onnx").graph
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert shapes == {
        "frames": ["batch", "frames", 64, 64, 3],
        "text": ["classes", 32],
        "probabilities": ["batch", "classes"],
    }


@pytest.mark.parametrize(
    ("adapter", "options", "message"),
    [
        ("ata", {}, "solver: greedy"),
        (GREEDY, {"frames": "free"}, "use --frames fixed"),
        ("none", {"format": "tflite"}, "format='tflite'"),
        ("none", {"dtype": "int4"}, "dtype='int4'"),
        ("none", {"format": "torch"}, "has the suffix .pt2"),
    ],
)
def test_what_cannot_be_exported_is_refused(adapter, options, message: str, make_model, tmp_path: Path):
    with pytest.raises(InputError, match=message) as caught:
        export_model(make_model(adapter, LABELS), tmp_path / "m.onnx", **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_models_without_classes_or_with_other_files_are_refused(make_model, tmp_path: Path):
    with pytest.raises(InputError, match="the model has no labels to store; pass --labels"):
        export_model(make_model("none"), tmp_path / "m.onnx")
    with pytest.raises(InputError, match="a linear head reads no text"):
        export_model(make_model("none", LABELS, head="linear"), tmp_path / "m.onnx", text="input")
    with pytest.raises(InputError, match="graphs take 4 to 512 frames, and the model has 3"):
        export_model(make_model("none", LABELS), tmp_path / "m.onnx", frames="free")
    with pytest.raises(InputError, match="int8 needs --format onnx"):
        export_model(make_model("none", LABELS), tmp_path / "m.pt2", "torch", dtype="int8")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "m.onnx").write_text("mine")
    with pytest.raises(InputError, match="exists; choose another name"):
        export_model(make_model("none", LABELS), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_text() == "mine"


def test_exact_solver_inside_onnx_export_names_the_greedy_one(make_model):
    model = make_model("ata", LABELS).requires_grad_(False)
    clips = clips_of(2, 3).permute(0, 1, 4, 2, 3)
    with pytest.raises(Exception, match="solver: greedy"):
        torch.onnx.export(model.encoder, (model.normalize(clips),), dynamo=True, verbose=False)


def test_description_survives_json():
    record = ExportRecord(("a", "b\u2028"), 4, 8, (4, 512), 48, (0.1, 0.2, 0.3), (1.0, 1.0, 1.0), CHANGED)
    assert ExportRecord.from_json(record.to_json(), "f") == record
    assert json.loads(record.to_json())["sampling"] == {"name": "uniform", "stride": 1, "by": "time"}
