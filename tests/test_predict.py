"""Classification of videos: the predictor, `clipvid predict`, transformers' pipeline, and several adapters by name."""

import contextlib
import io
import json
import math
import os
import shutil
import sys
import warnings
from fractions import Fraction
from pathlib import Path

import av
import matplotlib.image
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import REPOSITORY, clip_config, random_frames, shake, write_clip
from transformers import AutoConfig, AutoModelForVideoClassification, AutoVideoProcessor, pipeline

import clipvid
from clipvid import commands
from clipvid.commands import exit_cleanly
from clipvid.commands.predict import expand_names, separate, show_table
from clipvid.data.broken import BadVideos, Failure
from clipvid.data.config import DataConfig
from clipvid.data.lists import sources
from clipvid.data.manifest import load_manifest
from clipvid.data.preprocessing import Preprocessing
from clipvid.data.reader import VideoError, open_video
from clipvid.data.splits import eval_loader
from clipvid.data.synthetic.world import WorldConfig, build_world
from clipvid.evaluation.loop import predict
from clipvid.files import printable
from clipvid.hub.loading import from_pretrained
from clipvid.inference.bank import AdapterBank
from clipvid.inference.predictor import Predictor

LABELS = ["walking", "running", "jumping"]
WORLD = WorldConfig(
    objects=("ball", "star"), motions=("horizontal",), num_frames=20, image_size=48,
    train_per_class=1, val_per_class=1, test_per_class=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return build_world(WORLD, tmp_path_factory.mktemp("world"), progress=False)


@pytest.fixture(scope="module")
def videos(world: Path) -> list[str]:
    return sorted(map(str, world.rglob("*.mp4"))) or sorted(
        str(path) for path in world.rglob("*") if path.suffix == ".avi"
    )


@pytest.fixture(scope="module")
def saved(make_model, tmp_path_factory) -> Path:
    """Save a model whose preprocessing is not the default."""
    model = make_model("ila", LABELS)
    for adapter in model.encoder.adapters():
        shake(adapter)
    model.preprocessing = Preprocessing("dense", 2, "squash")
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.save_pretrained(folder)
    return folder


def run(*args: str, stdin: bytes = b"") -> tuple[int, list[dict], str]:
    """Return exit code, JSON lines and stderr of `clipvid predict`."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    usual, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(stdin))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            commands.run("predict", list(args))
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stdin = usual
    return code, [json.loads(line) for line in out.getvalue().splitlines()], err.getvalue()


def as_dict(predictions: list[dict]) -> dict[str, float]:
    return {item["label"]: item["score"] for item in predictions}


# The predictor


@pytest.mark.parametrize("views", [1, 3])
def test_scores_are_those_of_the_evaluation(saved, world, views):
    model = from_pretrained(saved)
    manifest = load_manifest(world, "val.csv")
    data = DataConfig(root=str(world), sampling="dense", stride=2, resize="squash", test_clips=views, num_workers=0)
    expected = predict(Accelerator(), model, eval_loader(data, model, manifest, Accelerator(), 4)).scores
    predictor = Predictor(model, views)
    actual = torch.stack([predictor.scores(manifest.video(index)) for index in range(len(manifest))])
    assert torch.allclose(actual, expected, atol=1e-6)
    assert (actual[0] - actual[1]).abs().max() > 1e-4


def test_predictions_are_sorted_top_k(saved, videos):
    predictor = Predictor(from_pretrained(saved))
    actual = predictor(videos[0], top_k=2)
    scores = dict(zip(LABELS, predictor.scores(videos[0]).tolist(), strict=True))
    assert [item["label"] for item in actual] == sorted(scores, key=scores.get, reverse=True)[:2]
    assert len(predictor(videos[0], top_k=9)) == 3


def test_model_without_labels_and_no_view_are_refused(make_model):
    with pytest.raises(ValueError, match="the model has no labels"):
        Predictor(make_model())
    with pytest.raises(ValueError, match="views=0"):
        Predictor(make_model(labels=LABELS), views=0)


def test_timeline_windows(saved, videos):
    predictor = Predictor(from_pretrained(saved))
    with open_video(videos[0]) as video:
        frames, fps = len(video), video.fps
        size, hop = 6, 5
        starts = [0, 5, 10, frames - size]
        clips = [predictor.reader.read(video, start=start, stop=start + size) for start in starts]
    timeline = predictor.timeline(videos[0], size / fps, hop / fps)
    assert timeline.times == pytest.approx([(start + size / 2) / fps for start in starts])
    with torch.no_grad():
        expected = torch.cat([predictor.model(clip).logits.softmax(-1) for clip in clips])
    assert torch.allclose(timeline.scores, expected, atol=1e-6)
    whole = predictor.timeline(videos[0], 1000, 1)
    assert len(whole.times) == 1
    assert torch.allclose(whole.scores[0], predictor.scores(videos[0]), atol=1e-6)


@pytest.mark.parametrize(("slow", "fast", "hop"), [(10, 60, 1.0), (10, 60, 0.5), (4, 30, 0.5)])
def test_timeline_goes_by_presentation_times(slow: int, fast: int, hop: float, tmp_path):
    """A video has one frame per second, then 30. The change appears at its time of display."""
    path = tmp_path / "rates.mp4"
    times = [*range(slow), *(slow + number / 30 for number in range(fast))]
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=30, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for time in times:
            picture = np.full((64, 64, 3), (255, 0, 0) if time < slow else (0, 0, 255), np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    model = clipvid.create_model("tiny", adapter="none", num_frames=4).eval()
    model.set_labels(["a red image", "a blue image"])
    predictor = Predictor(model)
    timeline = predictor.timeline(path, 1.0, hop)
    blue = [time for time, scores in zip(timeline.times, timeline.scores, strict=True) if scores[1] > scores[0]]
    assert blue == [time for time in timeline.times if time > min(blue) - 1e-6]
    assert min(blue) == pytest.approx(slow + 0.5, abs=0.5)
    assert timeline.times[-1] == pytest.approx(slow + fast / 30 - 0.5, abs=0.01)
    with pytest.warns(UserWarning, match=r"rates\.mp4: its frame rate varies"):
        predictor(path)


@pytest.mark.parametrize(("window", "hop"), [(0, 1), (1, 0), (-1, 1), (math.nan, 1), (1, math.inf), (1, math.nan)])
def test_invalid_timeline_window_is_refused(window, hop, make_model, videos):
    with pytest.raises(ValueError, match="expected seconds above 0"):
        Predictor(make_model(labels=LABELS)).timeline(videos[0], window, hop)


def test_timeline_has_at_most_a_window_for_each_frame(make_model, videos):
    with open_video(videos[0]) as video:
        frames = len(video)
    assert len(Predictor(make_model(labels=LABELS).eval()).timeline(videos[0], 0.2, 1e-9).times) <= frames + 1


# The command


def test_json_lines_for_all_inputs(saved, world, videos):
    predictor = Predictor(from_pretrained(saved))
    code, lines, err = run("--model", str(saved), "--batch_size", "1", *videos)
    assert (code, err) == (0, "")
    assert [line["video"] for line in lines] == videos
    for line in lines:
        assert as_dict(line["predictions"]) == as_dict(predictor(line["video"]))
    assert run("--model", str(saved), "--batch_size", "1", str(world))[1] == lines
    batched = run("--model", str(saved), f"{world}/**/*{Path(videos[0]).suffix}")[1]
    assert [line["video"] for line in batched] == videos
    for line, alone in zip(batched, lines, strict=True):
        assert as_dict(line["predictions"]) == pytest.approx(as_dict(alone["predictions"]), abs=1e-6)
    code, piped, _ = run("--model", str(saved), "-", stdin=Path(videos[0]).read_bytes())
    assert (code, piped[0]["video"]) == (0, "-")
    assert as_dict(piped[0]["predictions"]) == pytest.approx(as_dict(lines[0]["predictions"]), abs=1e-6)


def test_unreadable_videos_do_not_stop_others(saved, videos, tmp_path):
    broken, empty = tmp_path / "broken.mp4", tmp_path / "empty"
    broken.write_bytes(b"no video")
    empty.mkdir()
    code, lines, err = run("--model", str(saved), str(broken), videos[0], str(empty), "no*.mp4", videos[1])
    assert code == 1
    assert [line["video"] for line in lines] == videos[:2]
    assert len(err.splitlines()) == 3
    for name in (str(broken), f"{empty}: the folder has no video", "no*.mp4: no such file"):
        assert name in err


def test_difficult_files_are_distinguished(saved):
    folder = Path(os.environ.get("CLIPVID_SHARED_DATA", REPOSITORY.parent / "shared" / "data")) / "nasty"
    if not folder.is_dir():
        pytest.skip("no shared folder of broken videos; CLIPVID_SHARED_DATA names its parent")
    files = sorted(map(str, expand_names([str(folder)])))
    code, lines, err = run("--model", str(saved), str(folder))
    assert code == 1
    assert lines
    assert len(lines) + len(err.splitlines()) == len(files)


def test_labels_by_name_and_by_file(tiny_folder, videos, tmp_path):
    names = ["a ball", "a star", "a cat"]
    (tmp_path / "labels.txt").write_text("\n".join(names))
    (tmp_path / "labels.csv").write_text("id,name\n" + "\n".join(f"{i},{name}" for i, name in enumerate(names)))
    model = clipvid.create_model("tiny", adapter="none", labels=names, templates="single").eval()
    expected = as_dict(Predictor(model)(videos[0]))
    for inputs in (
        ["--labels", *names],
        ["--labels_file", f"{tmp_path}/labels.txt"],
        ["--labels_file", f"{tmp_path}/labels.csv"],
    ):
        code, lines, err = run("--model", "tiny", videos[0], *inputs)
        assert code == 0, err
        assert as_dict(lines[0]["predictions"]) == expected
    assert run("--model", "tiny", "--labels", *names, videos[0])[1] == lines
    assert run("--model", "tiny", videos[0], "--labels", *names, "--templates", "single")[1] == lines
    model.set_labels(names, ["{} moves", "{}!"])
    _, lines, _ = run("--model", "tiny", videos[0], "--labels", *names, "--templates", '["{} moves", "{}!"]')
    assert as_dict(lines[0]["predictions"]) == as_dict(Predictor(model)(videos[0]))
    assert separate(["a", "b", *videos[:2]], []) == (["a", "b"], videos[:2])
    assert separate(["a", "b"], videos) == (["a", "b"], videos)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no video was given"),
        (["x.mp4"], "the model has no labels; set them"),
        (["x.mp4", "--labels", "a", "--labels_file", "b"], "exclude each other"),
        (["x.mp4", "--labels_file", "nowhere.txt"], "no list of classes at nowhere.txt"),
        (["x.mp4", "--labels", "a", "b", "--top_k", "0"], "--top_k 0"),
        (
            ["x.mp4", "--labels", "a", "b", "--revision", "main"],
            "revision='main' is not used for tiny, a plain CLIP",
        ),
    ],
    ids=["no video", "no labels", "both", "no file", "top_k", "revision"],
)
def test_invalid_options_are_one_line(tiny_folder, arguments, message):
    code, lines, err = run("--model", "tiny", *arguments)
    assert (code, lines) == (1, [])
    assert message in err
    assert len(err.splitlines()) == 1


def test_table_on_a_terminal(saved, videos, tmp_path, monkeypatch):
    video = shutil.copy(videos[0], tmp_path / "a[bold]b.mp4")
    leader, follower = pytest.importorskip("pty").openpty()
    with os.fdopen(follower, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        commands.run("predict", ["--model", str(saved), "--top_k", "1", str(video)])
    written = b""
    with contextlib.suppress(OSError):  # Linux ends a terminal that nobody writes to with an error
        while part := os.read(leader, 65536):  # a read returns any part of what was written
            written += part
    os.close(leader)
    shown = written.decode()
    assert str(video) in shown
    best = Predictor(from_pretrained(saved))(videos[0])[0]
    assert best["label"] in shown
    assert f"{best['score']:.3f}" in shown
    assert "{" not in shown


ODD_NAMES = [
    "\x1b[2J\x1b]0;owned\x07.mp4",
    "a\nb.mp4",
    "\x9b31m.mp4",
    "\u202e4pm.mp4",
    os.fsdecode(b"\xff.mp4"),
    "打.mp4",
]


def fail(name: str) -> None:
    sys.stderr.write(warnings.formatwarning(f"beware of {name}", UserWarning, "file.py", 1))
    raise VideoError(name, f"no video stream in {name}")


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_cannot_steer_the_terminal(name, capsys):
    show_table(name, [{"label": name, "score": 0.5}])
    with pytest.raises(SystemExit), exit_cleanly("clipvid"):
        fail(name)
    BadVideos().add([Failure(name, name)])
    shown = capsys.readouterr()
    text = shown.out + shown.err
    assert text.count(printable(name)) >= 6 - ("\n" in name)  # a warning may have several lines
    assert not set(text) & {"\x1b", "\x07", "\x9b", "\u202e", "\udcff"}
    assert f"clipvid: {printable(name)}: no video stream in {printable(name)}" in shown.err.splitlines()


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_json_of_odd_names_is_valid_on_one_line(name, encoding, make_model, videos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(videos[0], name)
    label = name.encode(errors="replace").decode()  # a class name is always UTF-8
    make_model(labels=[label, "other"]).save_pretrained("m")
    out = io.BytesIO()
    with contextlib.redirect_stdout(io.TextIOWrapper(out, encoding, write_through=True)):
        commands.run("predict", ["--model", "m", "--timeline", "--output_dir", "t", name])
        text = out.getvalue().decode(encoding)
    (line,) = text.splitlines()
    assert json.loads(line)["video"] == name
    assert label in [each["label"] for each in json.loads(line)["predictions"]]
    assert printable(text.strip()) == text.strip()
    assert len(list((tmp_path / "t").iterdir())) == 3


def test_timeline_json_and_png(saved, videos, tmp_path):
    code, lines, _ = run(
        "--model",
        str(saved),
        videos[0],
        "--timeline",
        "--window",
        "0.5",
        "--hop",
        "0.25",
        "--output_dir",
        str(tmp_path),
    )
    assert (code, len(lines)) == (0, 1)
    record = json.loads(next(tmp_path.glob("*.json")).read_text())
    expected = Predictor(from_pretrained(saved)).timeline(videos[0], 0.5, 0.25)
    assert (record["labels"], record["times"]) == (LABELS, expected.times)
    assert torch.allclose(torch.tensor(record["scores"]), expected.scores, atol=1e-6)
    picture = matplotlib.image.imread(next(tmp_path.glob("*.png")))
    assert picture.shape[:2] == (400, 1000)
    assert picture[..., :3].std() > 0.01


# transformers


def test_auto_classes_know_the_folder(saved):
    config = AutoConfig.from_pretrained(saved)
    assert isinstance(config, clipvid.ClipVidConfig)
    assert (config.num_frames, config.num_labels, config.id2label) == (3, 3, dict(enumerate(LABELS)))
    assert isinstance(AutoVideoProcessor.from_pretrained(saved), clipvid.ClipVidVideoProcessor)
    model = AutoModelForVideoClassification.from_pretrained(saved)
    assert isinstance(model, clipvid.ClipVidForVideoClassification)
    frames = random_frames()
    with torch.no_grad():
        assert torch.equal(model(frames).logits, from_pretrained(saved)(frames).logits)
        output = model(frames, labels=torch.tensor([0, 1]))
    assert output.loss > torch.nn.functional.cross_entropy(output.logits, torch.tensor([0, 1]))  # ILA's losses too


def test_pipeline_equals_predict_bitwise(saved, videos, caplog):
    classify = pipeline("video-classification", model=str(saved), device="cpu")
    assert "not supported" not in caplog.text
    _, lines, _ = run("--model", str(saved), "--batch_size", "1", *videos)
    for line in lines:
        assert as_dict(classify(line["video"])) == as_dict(line["predictions"])
    content = Path(videos[0]).read_bytes()
    assert as_dict(classify(content)) == as_dict(Predictor(from_pretrained(saved))(content))
    assert [as_dict(actual) for actual in classify(videos[:2], top_k=1)] == [
        as_dict(line["predictions"][:1]) for line in lines[:2]
    ]


def test_transformers_save_round_trip(saved, tmp_path):
    AutoModelForVideoClassification.from_pretrained(saved).save_pretrained(tmp_path)
    for name in ("model.safetensors", "config.json", "video_preprocessor_config.json"):
        assert (tmp_path / name).read_bytes() == (saved / name).read_bytes()
    processor = AutoVideoProcessor.from_pretrained(saved)
    processor.save_pretrained(tmp_path)
    again = AutoVideoProcessor.from_pretrained(tmp_path)
    frames = torch.randint(256, (9, 50, 60, 3), dtype=torch.uint8)
    assert torch.equal(processor(frames)["pixel_values_videos"], again(frames)["pixel_values_videos"])
    assert processor([frames, frames])["pixel_values_videos"].shape == (2, 3, 3, 64, 64)
    with pytest.raises(ValueError, match=r"expected uint8 \[N, H, W, 3\]"):
        processor(frames.float())


def test_pipeline_reports_unreadable_video(saved, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(VideoError, match=r"broken\.mp4: not a readable video"):
        pipeline("video-classification", model=str(saved), device="cpu")(str(tmp_path / "broken.mp4"))


# Several adapters by name


@pytest.fixture(scope="module")
def folders(make_model, tmp_path_factory) -> dict[str, Path]:
    """Save models of one backbone with different adapters, heads and labels."""
    specs = {
        "ila": {"adapter": "ila", "labels": LABELS, "pooling": "mit"},
        "sifa": {"adapter": "sifa", "labels": ["one", "two"], "num_frames": 4},
        "linear": {"adapter": "none", "labels": LABELS, "head": "linear"},
    }
    root, actual = tmp_path_factory.mktemp("bank"), {}
    for name, spec in specs.items():
        model = make_model(**spec)
        for part in (*model.encoder.adapters(), model.pooling, model.head):
            shake(part)
        model.save_pretrained(root / name)
        actual[name] = root / name
    return actual


@torch.no_grad()
def test_bank_shares_weights_and_equals_single_models(folders):
    frames, (first, *others) = random_frames(), folders
    bank = AdapterBank(from_pretrained(folders[first]), first)
    before = {parameter.data_ptr() for parameter in bank.model._backbone_parameters()}
    for name in others:
        bank.load_adapter(folders[name], name)
    assert bank.adapter_names == list(folders)
    for name in [*folders, first]:
        bank.set_adapter(name)
        alone = from_pretrained(folders[name])
        assert torch.equal(bank(frames).logits, alone(frames).logits)
        assert (bank.model.labels, bank.model.num_frames) == (alone.labels, alone.num_frames)
        assert {parameter.data_ptr() for parameter in bank.model._backbone_parameters()} == before
    own = sum(value.numel() for name in folders for value in from_pretrained(folders[name]).saved_state().values())
    whole = sum(parameter.numel() for parameter in bank.parameters())
    assert whole <= sum(parameter.numel() for parameter in bank.model._backbone_parameters()) + own


def test_bank_refuses_other_backbones(folders, make_model, tmp_path):
    bank = AdapterBank(from_pretrained(folders["ila"]), "ila")
    with pytest.raises(ValueError, match="'ila' already exists"):
        bank.load_adapter(folders["sifa"], "ila")
    with pytest.raises(ValueError, match="no adapter 'other'; adapters: ila"):
        bank.set_adapter("other")
    for name in ("", "sports.v1", "training"):
        with pytest.raises(ValueError, match=f"adapter '{name}': choose a word"):
            bank.load_adapter(folders["sifa"], name)
    make_model(labels=LABELS, tune=["adapters", "layernorm"]).save_pretrained(tmp_path / "tuned")
    with pytest.raises(ValueError, match="has a trained backbone"):
        bank.load_adapter(tmp_path / "tuned", "tuned")
    other = write_clip(tmp_path / "clip", clip_config(), seed=9)
    make_model("sifa", LABELS, folder=other).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="was trained on another backbone"):
        bank.load_adapter(tmp_path / "other", "other")
    assert bank.adapter_names == ["ila"]


def test_timeline_reports_its_progress(saved, videos):
    seen: list[tuple[int, int]] = []
    timeline = Predictor(from_pretrained(saved)).timeline(videos[0], 0.1, 0.04, lambda *counts: seen.append(counts))
    total = len(timeline.times)
    assert total > 8
    assert seen == [(min(done, total), total) for done in range(8, total + 8, 8)]


@pytest.mark.parametrize("name", ["-clip.mp4", "--clip.mp4", "-"])
def test_names_that_start_with_a_dash_need_two_dashes_before_them(name, saved, videos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(Path(videos[0]).read_bytes())
    if name != "-":
        code, _, err = run("--model", str(saved), name)
        assert code == 1
        assert f"clipvid predict ... -- {name}; or write ./{name}" in err
        assert len(err.splitlines()) == 1
        assert run("--model", str(saved), "--", name)[1][0]["video"] == name
    assert run("--model", str(saved), f"./{name}")[1][0]["video"] == f"./{name}"


def test_folders_have_the_same_videos_for_training_and_prediction(tmp_path):
    names = ["a.mp4", "b.MTS", "c.h264", "d.asf", "e.txt", "f.webp", "g.265", "h.vob"]
    for name in names:
        (tmp_path / name).touch()
    shown = [str(tmp_path / name) for name in names if name not in ("e.txt", "f.webp")]
    assert list(expand_names([str(tmp_path)])) == [str(path) for path in sources.find_videos(tmp_path)] == shown


def test_frames_of_a_saved_model_cannot_be_changed(saved, videos, make_model, tmp_path):
    code, _, err = run("--model", str(saved), "--num_frames", "16", str(videos[0]))
    assert code == 1
    assert "num_frames=16 is not used for" in err
    own = clipvid.from_pretrained(saved).num_frames
    assert run("--model", str(saved), "--num_frames", str(own), str(videos[0]))[0] == 0


@pytest.mark.parametrize("hidden", ["._a.mp4", ".trash/a.mp4", "b/.cache/c/a.mp4"])
def test_hidden_files_of_a_folder_are_left_out(hidden, tmp_path):
    for name in ("a.mp4", "b/a.mp4", hidden):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    shown = [str(tmp_path / "a.mp4"), str(tmp_path / "b/a.mp4")]
    assert list(expand_names([str(tmp_path)])) == shown
    assert [str(path) for path in sources.find_videos(tmp_path)] == shown
    assert list(expand_names([f"{tmp_path}/**/*.mp4"])) == shown
    assert list(expand_names([str(tmp_path / hidden)])) == [str(tmp_path / hidden)]
