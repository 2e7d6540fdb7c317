"""Exported models predict files without torch, with the usual frames, and files of strangers are refused."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from video_server import video_server

import clipvid
from clipvid import InputError
from clipvid.commands import main
from clipvid.data.preprocessing import Preprocessing
from clipvid.data.resizing import resize_frame
from clipvid.data.synthetic.encoding import write_video
from clipvid.data.synthetic.world import WorldConfig, render_clip
from clipvid.data.transforms import eval_transform
from clipvid.inference.clips import ClipReader
from clipvid.inference.export.formats import export_model
from clipvid.inference.exported.files import read_clips
from clipvid.inference.exported.onnx_file import read_metadata
from clipvid.inference.exported.onnx_model import OnnxModel
from clipvid.inference.exported.record import KEY, MAX_BYTES
from clipvid.inference.videos import open_source

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

LABELS = ["a ball", "a box", "a star"]
HAS_AVX2 = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Create a model folder, its exported files and three videos."""
    folder = tmp_path_factory.mktemp("exported")
    config = WorldConfig(train_per_class=1, val_per_class=0, test_per_class=0)
    for number in range(3):
        write_video(folder / f"{number}.mp4", render_clip(config, number, "train", 0), config.fps)
    model = clipvid.create_model("tiny", labels=LABELS, num_frames=4).eval()
    model.preprocessing = Preprocessing(by="time", resize="squash")
    model.save_pretrained(folder / "model")
    export_model(model, folder / "m.onnx")
    export_model(model, folder / "text.onnx", text="input")
    return folder


def predictions(capsys) -> dict[str, dict[str, float]]:
    lines = map(json.loads, capsys.readouterr().out.splitlines())
    return {line["video"]: {one["label"]: one["score"] for one in line["predictions"]} for line in lines}


@pytest.mark.parametrize("file", ["m.onnx", "text.onnx"])
def test_predictions_equal_those_of_the_model_folder(file: str, folder: Path, capsys):
    videos = [str(folder / f"{number}.mp4") for number in range(3)]
    main(["predict", "--model", str(folder / "model"), "--num_workers", "0", "--views", "2", *videos])
    expected = predictions(capsys)
    with pytest.raises(SystemExit) as end:
        main(["predict", "--model", str(folder / file), "--views", "2", "--batch_size", "4", *videos])
    assert end.value.code == 0
    scores = predictions(capsys)
    assert list(scores) == videos
    for name in videos:
        assert scores[name] == pytest.approx(expected[name], abs=1e-4)


def test_prediction_imports_no_torch(folder: Path):
    code = "import sys; from clipvid.commands import main\ntry: main(sys.argv[1:])\n"
    code += "finally: print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    args = ["predict", "--model", "m.onnx", "0.mp4", "missing.mp4", "1.mp4", "--output", "lines.jsonl"]
    done = subprocess.run([sys.executable, "-c", code, *args], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    error, modules = done.stderr.splitlines()
    assert error == "clipvid predict: missing.mp4: no such file"
    assert "onnxruntime" in modules.split()
    assert not {"torch", "torchvision", "transformers", "accelerate", "open_clip"} & set(modules.split())
    lines = (folder / "lines.jsonl").read_text().splitlines()
    assert [json.loads(line)["video"] for line in lines] == ["0.mp4", "1.mp4"]
    (folder / "lines.jsonl").write_text(lines[0] + "\n")
    done = subprocess.run([sys.executable, "-c", code, *args], cwd=folder, capture_output=True, text=True, check=False)
    assert (folder / "lines.jsonl").read_text().splitlines() == lines
    other = [*args[:2], "text.onnx", *args[3:]]
    done = subprocess.run([sys.executable, "-c", code, *other], cwd=folder, capture_output=True, text=True, check=False)
    assert "has predictions with other settings (model)" in done.stderr


def test_web_videos_are_read_without_torch(folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("CLIPVID_CACHE", str(tmp_path))
    code = "import sys; from clipvid.commands import main\ntry: main(['predict', '--model', *sys.argv[1:]])\n"
    code += "finally: print('torch' in sys.modules, file=sys.stderr)"

    def predicted(*names: str) -> tuple[list[dict], list[str]]:
        args = [sys.executable, "-c", code, str(folder / "m.onnx"), *names]
        done = subprocess.run(args, capture_output=True, text=True, check=False)
        return [json.loads(line) for line in done.stdout.splitlines()], done.stderr.splitlines()

    videos = [folder / f"{number}.mp4" for number in range(3)]
    with video_server() as server:
        for number, video in enumerate(videos):  # the first one has no mark of its version
            server.files[f"/{number}.mp4"] = video.read_bytes(), f'"{number}"' if number else None
        server.files["/text.mp4"] = b"no video", '"text"'
        addresses = [f"{server.url}/{number}.mp4" for number in range(3)]
        wrong = [f"{server.url}/absent.mp4", f"{server.url}/text.mp4", "http://127.0.0.1:1/a.mp4"]
        lines, errors = predicted(addresses[0], *wrong, *addresses[1:])
    assert errors[0] == f"clipvid predict: {wrong[0]}: it cannot be downloaded (HTTP Error 404: Not Found)"
    assert errors[1].startswith(f"clipvid predict: {wrong[1]}: not a readable video")
    assert errors[2].startswith(f"clipvid predict: {wrong[2]}: it cannot be downloaded (")
    assert errors[3:] == ["False"]
    assert [line["video"] for line in lines] == addresses
    local, errors = predicted(videos[0].as_uri(), *map(str, videos[1:]))
    assert errors == ["False"]
    assert [line["predictions"] for line in lines] == [line["predictions"] for line in local]
    assert sum(path.is_file() for path in tmp_path.rglob("*")) == 3  # two videos and the text


@pytest.mark.parametrize("resize", ["shortest_center", "squash", "bilinear_center"])
@pytest.mark.parametrize("size", [(240, 320), (321, 240), (48, 48), (31, 77), (17, 500), (225, 224), (5, 7)], ids=str)
def test_frames_equal_those_of_torchvision(resize, size: tuple[int, int]):
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    for frame in (noise, np.where(noise > 127, 255, 0).astype(np.uint8)):
        for side in (48, 224):
            usual = eval_transform(side, resize)(torch.from_numpy(frame).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
            difference = np.abs(resize_frame(frame, side, resize).astype(int) - usual.numpy())
            assert difference.max() <= (0 if HAS_AVX2 else 1)


@pytest.mark.parametrize("changed", [{}, {"by": "time"}, {"sampling": "dense", "stride": 2}], ids=str)
def test_clips_equal_those_of_the_usual_reader(changed, folder: Path):
    record = OnnxModel(folder / "m.onnx").record
    preprocessing = Preprocessing(resize="shortest_center", **changed)
    object.__setattr__(record, "preprocessing", preprocessing)
    reader = ClipReader.create(record.num_frames, record.image_size, preprocessing)
    for views in (1, 3):
        with open_source(folder / "0.mp4") as video:
            usual = reader.read(video, views).permute(0, 1, 3, 4, 2).numpy()
        clips = read_clips(str(folder / "0.mp4"), record, views).clips
        assert clips is not None
        assert np.abs(clips.astype(int) - usual).max() <= (0 if HAS_AVX2 else 1)


def test_wrong_arrays_are_refused(folder: Path):
    model = OnnxModel(folder / "m.onnx", threads=1)
    frames = np.zeros((2, 4, 48, 48, 3), dtype=np.uint8)
    assert model(frames).shape == (2, 3)
    with pytest.raises(InputError, match=r"clips of 5 frames, but the model takes 4; clipvid export --frames free"):
        model(frames.repeat(2, axis=1)[:, :5])
    for wrong in (frames.astype(np.float32), frames[0], frames[:0], frames[..., :2]):
        with pytest.raises(InputError, match=r"expected uint8 \[B, T, 48, 48, 3\]"):
            model(wrong)
    with pytest.raises(InputError, match="has its classes inside; text is not used"):
        model(frames, np.zeros((2, 128), dtype=np.float32))


def refused(path: Path, capsys, *options: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(["predict", "--model", str(path), "clip.mp4", *options])
    error = capsys.readouterr().err
    assert end.value.code == 1
    assert error.count("\n") == 1
    assert error.startswith("clipvid predict: ")
    return error


def test_files_that_are_not_exported_models_are_refused(folder: Path, tmp_path: Path, capsys):
    path = tmp_path / "x.onnx"
    assert "No such file" in refused(path, capsys)
    content = (folder / "m.onnx").read_bytes()
    for damaged in (b"", b"not a model at all", content[: len(content) // 2], b"\xff" * 1000, b"\x3a\x80" * 50):
        path.write_bytes(damaged)
        assert "expected a model of clipvid export" in refused(path, capsys)
    path.unlink()
    path.mkdir()
    assert "expected a regular file" in refused(path, capsys)
    path.rmdir()
    model = onnx.load(folder / "m.onnx")
    (entry,) = (entry for entry in model.metadata_props if entry.key == KEY)
    for value, message in (
        ("{", "its description is damaged"),
        ("[" * 100_000, "its description is damaged"),
        ("[]", "its description is damaged"),
        (entry.value.replace('"format": 1', '"format": 2'), "which is newer; update clipvid"),
        (entry.value.replace('"image_size": 48', '"image_size": "big"'), "expected a positive integer"),
        (entry.value.replace('"image_size": 48', '"image_size": 32'), "not those of a model|onnxruntime|incompatible"),
        (entry.value.replace('"squash"', '"stretch"'), "resize"),
        ('"' + "x" * (MAX_BYTES + 1) + '"', "at most 16,777,216 are read"),
    ):
        entry.value = value
        onnx.save(model, path)
        if 'image_size": 32' in value:
            with pytest.raises((InputError, clipvid.RunError)):
                OnnxModel(path)(np.zeros((1, 4, 32, 32, 3), dtype=np.uint8))
        else:
            assert message in refused(path, capsys)
    del model.metadata_props[:]
    onnx.save(model, path)
    assert "without clipvid's description" in refused(path, capsys)


def external(tensor) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def tensors_of(model) -> dict[str, object]:
    """Return one tensor at each kind of place in a model."""
    attribute = onnx.AttributeProto.TENSOR
    node = model.graph.node.add(op_type="Constant", name="c")
    own = node.attribute.add(name="value", type=attribute)
    inner = model.graph.node.add(op_type="If").attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH)
    function = model.functions.add(name="f").node.add(op_type="Constant").attribute.add(name="v", type=attribute)
    return {
        "initializer": model.graph.initializer[0],
        "sparse": model.graph.sparse_initializer.add().values,
        "attribute": own.t,
        "attributes": own.tensors.add(),
        "subgraph": inner.g.initializer.add(),
        "subgraphs": inner.graphs.add().initializer.add(),
        "function": function.t,
        "training": model.training_info.add().initialization.initializer.add(),
    }


@pytest.mark.parametrize(
    "place",
    ["initializer", "sparse", "attribute", "attributes", "subgraph", "subgraphs", "function", "training"],
)
def test_weights_in_other_files_are_refused_at_every_place(place: str, folder: Path, tmp_path: Path):
    model = onnx.load(folder / "m.onnx")
    external(tensors_of(model)[place])
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="its weights are in other files, which is refused"):
        read_metadata(tmp_path / "x.onnx", KEY)


def test_options_without_effect_are_refused(folder: Path, capsys):
    model = folder / "m.onnx"
    for option in (["--labels", "a"], ["--timeline"], ["--revision", "main"], ["--templates", "a {}"]):
        assert f"{option[0]} does not work with an exported model" in refused(model, capsys, *option)
    assert "has its classes inside" in refused(model, capsys, "--labels_file", "x.safetensors")
    assert "--views 0" in refused(model, capsys, "--views", "0")


def test_command_writes_a_file_and_refuses_to_replace_it(folder: Path, tmp_path: Path, capsys):
    output = tmp_path / "new" / "m.pt2"
    command = ["export", "--model", str(folder / "model"), "--format", "torch", "--output", str(output)]
    main(command)
    report = json.loads(capsys.readouterr().out)
    assert report["classes"] == LABELS
    assert report["bytes"] == output.stat().st_size
    assert report["largest_difference"] < 1e-4
    assert [path.name for path in output.parent.iterdir()] == ["m.pt2"]
    for changed, message in (
        ([], "exists; choose another name"),
        (["--format", "coreml"], "format='coreml'"),
        (["--labels", "a", "--labels_file", "b.txt"], "exclude each other"),
    ):
        with pytest.raises(SystemExit) as end:
            main([*command, *changed])
        error = capsys.readouterr().err
        assert end.value.code == 1
        assert error.startswith("clipvid export: ")
        assert error.count("\n") == 1
        assert message in error


def test_script_runs_the_verb():
    script = REPOSITORY / "scripts/export.py"
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "clipvid export" in done.stdout
