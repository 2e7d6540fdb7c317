"""Script of the documentation that runs an exported model in JavaScript, with node and onnxruntime-web."""

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import REPOSITORY, shake_adapters
from test_docs import BLOCKS

import clipvid
from clipvid.commands import main
from clipvid.data.synthetic.encoding import write_video
from clipvid.data.synthetic.world import WorldConfig, render_clip
from clipvid.inference.clips import ClipReader
from clipvid.inference.videos import open_source


def run_javascript(folder: Path, frames: bytes) -> dict[str, float]:
    """Run the script of the page in node on raw frames, and return the scores that it prints."""
    modules = Path(os.environ.get("CLIPVID_NODE_MODULES", REPOSITORY / "node_modules")).absolute()
    if shutil.which("node") is None:
        pytest.skip("needs node")
    if not (modules / "onnxruntime-web").is_dir():
        pytest.skip(f"needs onnxruntime-web in {modules}: npm install onnxruntime-web; CLIPVID_NODE_MODULES names it")
    if not (folder / "node_modules").exists():
        (folder / "node_modules").symlink_to(modules, target_is_directory=True)
    (block,) = (block for block in BLOCKS if block.language == "js")
    (folder / "predict.mjs").write_text(block.code.replace("toFixed(3)", "toFixed(7)"))
    done = subprocess.run(["node", "predict.mjs"], cwd=folder, input=frames, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:].decode()
    lines = [line.split("  ", 1) for line in done.stdout.decode().splitlines()]
    assert [float(score) for score, _ in lines] == sorted((float(score) for score, _ in lines), reverse=True)
    return {label: float(score) for score, label in lines}


@pytest.mark.slow
def test_script_in_javascript_equals_clipvid_predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    config = WorldConfig(train_per_class=1, val_per_class=0, test_per_class=0)
    write_video("clip.mp4", render_clip(config, 0, "train", 0), config.fps)
    model = clipvid.create_model("tiny", adapter="st_adapter", labels=["ball moving left", "box moving up"]).eval()
    shake_adapters(model).save_pretrained("my_videos")
    main(["export", "--model", "my_videos", "--output", "my_videos.onnx"])
    Path("my_videos.json").write_text(capsys.readouterr().out)
    with pytest.raises(SystemExit, match="0"):
        main(["predict", "--model", "my_videos.onnx", "clip.mp4"])
    (line,) = capsys.readouterr().out.splitlines()
    expected = {one["label"]: one["score"] for one in json.loads(line)["predictions"]}
    reader = ClipReader.create(model.num_frames, model.image_size, model.preprocessing)
    with open_source("clip.mp4") as video:
        frames = [reader.resize(frame).permute(1, 2, 0).numpy() for _, frame in video.frames(range(len(video)))]
    scores = run_javascript(tmp_path, b"".join(frame.tobytes() for frame in frames))
    assert scores == pytest.approx(expected, abs=1e-5)
    if shutil.which("ffmpeg") is None:
        return  # the script itself does not need it
    (line,) = (line for block in BLOCKS for line in block.code.splitlines() if line.startswith("ffmpeg "))
    words = shlex.split(line.replace("224", str(model.image_size)))
    piped = subprocess.run(words[: words.index("|")], capture_output=True, check=True).stdout
    assert len(piped) == len(frames) * frames[0].nbytes
    assert run_javascript(tmp_path, piped) == pytest.approx(expected, abs=0.05)
