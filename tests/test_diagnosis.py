"""Measurements of adapters during training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

import clipvid
from clipvid import InputError
from clipvid.adapters import AdapterOutput
from clipvid.data.synthetic.world import WorldConfig, build_world
from clipvid.model.video_clip import VideoCLIP
from clipvid.training import diagnosis
from clipvid.training.config import TrainingConfig
from clipvid.training.diagnosis import UpdateNorms, named_adapters, switched_off


@pytest.fixture
def model() -> VideoCLIP:
    torch.manual_seed(0)
    adapters = [{"name": "st_adapter", "layers": [1, 3]}, {"name": "gta", "layers": [3]}]
    model = clipvid.create_model("tiny", adapter=adapters, num_frames=3).eval()
    for adapter in model.encoder.adapters():
        for parameter in adapter.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
    return model


@pytest.fixture
def frames(model: VideoCLIP) -> torch.Tensor:
    shape = (2, 3, 3, model.image_size, model.image_size)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_ratios_equal_those_of_recorded_updates(model: VideoCLIP, frames: torch.Tensor) -> None:
    squares: dict[str, list[tuple[float, float]]] = {}
    for name, adapter in named_adapters(model).items():
        own = squares.setdefault(name, [])
        adapter.register_forward_hook(
            lambda _, inputs, output, own=own: own.append(
                (float(output.update.square().mean()), float(inputs[0].square().mean()))
            )
        )
    with torch.no_grad(), UpdateNorms(model) as norms:
        for clip in frames:
            model.encoder(model.normalize(clip[None]))
    ratios = norms.ratios(Accelerator())
    assert sorted(ratios) == ["gta.3", "st_adapter.1", "st_adapter.3"]
    for name, own in squares.items():
        updates, streams = map(sum, zip(*own, strict=True))
        assert ratios[name] == pytest.approx((updates / streams) ** 0.5, rel=1e-5)
        assert ratios[name] > 0


@torch.no_grad()
def test_switched_off_adapters_equal_a_model_without_them(model: VideoCLIP, frames: torch.Tensor) -> None:
    def features() -> torch.Tensor:
        return model.encoder(model.normalize(frames)).frame_features

    whole = features()
    with switched_off(model, list(named_adapters(model))):
        plain = clipvid.create_model("tiny", adapter="none", num_frames=3).eval()
        assert torch.equal(features(), plain.encoder(plain.normalize(frames)).frame_features)
    with switched_off(model, ["st_adapter.1"]):
        assert not torch.allclose(features(), whole)
    assert torch.equal(features(), whole)


def test_a_run_records_and_shows_the_measurements(tmp_path: Path) -> None:
    world = WorldConfig(
        objects=("ball", "box"), motions=("horizontal",), num_frames=4, image_size=32,
        train_per_class=2, val_per_class=1, test_per_class=0,
    )  # fmt: skip
    root = build_world(world, tmp_path / "world", progress=False)
    run = clipvid.finetune({
        "output_dir": tmp_path / "run",
        "model": {"adapter": {"name": "st_adapter", "layers": [-2, -1]}, "num_frames": 2},
        "data": {"root": root, "num_workers": 0},
        "training": {"epochs": 2, "per_device_train_batch_size": 4, "report_to": "none", "diagnose": True},
        "selection": {"folds": 0},
    })  # fmt: skip
    history = json.loads((tmp_path / "run/history.json").read_text())
    first, last = (entry for entry in history if "train_top1" in entry)
    assert 0 <= first["train_top1"] <= 1
    assert {key for key in first if "/" in key} == {"update/st_adapter.2", "update/st_adapter.3"}
    assert {key for key in last if key.startswith("without/")} == {
        "without/st_adapter.2", "without/st_adapter.3", "without/all adapters",
    }  # fmt: skip
    assert last["update/st_adapter.2"] > first["update/st_adapter.2"] > 0
    report = (run.folder / "report.html").read_text()
    assert "top-1 on training videos" in report
    assert "length of updates over steps" in report
    assert "switched off" in report


def test_adapters_below_stored_features_are_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shift has no weights, so that its blocks are among those whose output is stored."""
    world = WorldConfig(
        objects=("ball", "box"), motions=("horizontal",), num_frames=4, image_size=32,
        train_per_class=2, val_per_class=1, test_per_class=0,
    )  # fmt: skip
    silenced = []

    def silence(module: torch.nn.Module, inputs: tuple, output: AdapterOutput) -> AdapterOutput:
        silenced.append(module)
        return output._replace(update=None)

    monkeypatch.setattr(diagnosis, "_silence", silence)
    clipvid.finetune({
        "output_dir": tmp_path / "run",
        "model": {"adapter": {"name": "shift", "layers": [-2, -1]}, "num_frames": 2, "head": "linear"},
        "data": {"root": build_world(world, tmp_path / "world", progress=False), "num_workers": 0},
        "training": {
            "epochs": 1, "per_device_train_batch_size": 4, "report_to": "none", "diagnose": True,
            "cache_features": 1.0, "cache_views": 1,
        },
        "selection": {"folds": 0},
    })  # fmt: skip
    assert json.loads((tmp_path / "run/run.json").read_text())["sessions"][0]["features"]["depth"] == 5
    assert len(set(silenced)) == 2
    last = json.loads((tmp_path / "run/history.json").read_text())[-1]
    assert last["update/shift.2"] > 0
    assert last["update/shift.3"] > 0


def test_compiled_blocks_cannot_be_measured() -> None:
    with pytest.raises(InputError, match="torch_compile"):
        TrainingConfig(diagnose=True, torch_compile=True)
