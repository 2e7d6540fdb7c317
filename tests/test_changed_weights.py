"""A run is refused where the pretrained weights that it was started from have changed on disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from clipvid.commands import run
from clipvid.data.synthetic.world import WorldConfig, build_world

WORLD = WorldConfig(
    objects=("ball", "star"), motions=("horizontal",), num_frames=4, image_size=32,
    train_per_class=2, val_per_class=1, test_per_class=0,
)  # fmt: skip
WEIGHTS = "open_clip_model.safetensors"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return build_world(WORLD, tmp_path_factory.mktemp("world"), progress=False)


@pytest.fixture(params=["local-dir", "packaged"])
def backbone(request, clip_folder: Path, tmp_path: Path) -> tuple[str, Path]:
    """Name of a backbone, and the folder of its weights."""
    if request.param == "packaged":
        return "tiny", request.getfixturevalue("tiny_folder")
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    return f"local-dir:{folder}", folder


def words(verb: str, world: Path, name: str, output: Path, epochs: int) -> list[str]:
    options = {
        "data.root": world, "data.num_workers": 0, "model.backbone": name, "model.adapter": "{name: ila, hidden: 16}",
        "model.num_frames": 2, "output_dir": output, "training.epochs": epochs, "training.report_to": "none",
        "training.per_device_train_batch_size": 4,
    }  # fmt: skip
    options |= {"objectives": "[masked, distillation]"} if verb == "pretrain" else {"selection.folds": 0}
    return [f"--{key}={value}" for key, value in options.items()]


def rewrite(folder: Path, change: float, metadata: str = "a") -> None:
    """Write the weights again, with one of them moved by `change`."""
    tensors = load_file(folder / WEIGHTS)
    tensors["visual.proj"][0, 0] += change
    save_file(tensors, folder / WEIGHTS, metadata={"by": metadata})


@pytest.mark.parametrize("verb", ["finetune", pytest.param("pretrain", marks=pytest.mark.slow)])
def test_run_refuses_changed_weights(verb: str, backbone, world: Path, tmp_path: Path, capsys):
    name, folder = backbone
    output = tmp_path / "run"
    run(verb, words(verb, world, name, output, 1))
    before = json.loads((output / "run.json").read_text())
    assert len(before["manifests"]["model.backbone"]) == 64
    shutil.copy(folder / WEIGHTS, tmp_path / "former")
    rewrite(folder, 0.25)
    for epochs in (1, 2):  # a finished run, and one that continues it
        with pytest.raises(SystemExit) as end:
            run(verb, words(verb, world, name, output, epochs))
        assert end.value.code == 1
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert f"contains a run on other weights: those of model.backbone={name}" in line
        assert json.loads((output / "run.json").read_text()) == before
    shutil.copy(tmp_path / "former", folder / WEIGHTS)
    rewrite(folder, 0.0, "another program")
    run(verb, words(verb, world, name, output, 2))
    assert len(json.loads((output / "run.json").read_text())["sessions"]) == 2


def test_finished_run_needs_its_pretrained_weights_no_more(clip_folder: Path, world: Path, tmp_path: Path, capsys):
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    finetuning = words("finetune", world, f"local-dir:{folder}", tmp_path / "run", 1)
    run("finetune", finetuning)
    (folder / WEIGHTS).unlink()
    before = (tmp_path / "run" / "metrics.json").read_bytes()
    run("finetune", finetuning)
    out = capsys.readouterr().out
    assert "the pretrained weights cannot be compared with those of the finished run" in out
    assert "is already finished" in out
    assert (tmp_path / "run" / "metrics.json").read_bytes() == before
