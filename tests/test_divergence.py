"""Steps with a non-finite loss or gradients, and batches that do not fit into memory."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from processes import Worker, all_end_well
from safetensors.torch import load_file
from test_survival import arguments, here, world  # noqa: F401
from torch import Tensor, nn

import clipvid
from clipvid.training.batch_size import largest_batch_size
from clipvid.training.build import build_accelerator
from clipvid.training.checkpoint import load_checkpoint
from clipvid.training.config import TrainingConfig
from clipvid.training.objectives import Classification
from clipvid.training.optim import OptimConfig, build_optimizer

BATCH_NORM = "{name: ila, hidden: 16, norm: batch}"


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch):
    """Replace the loss of every batch that contains one of the samples."""
    original = Classification.__call__

    def spoil(samples: set[int], how) -> list[list[int]]:
        met: list[list[int]] = []

        def spoilt(self, model, batch, epoch):
            if samples & set(batch["index"].tolist()):
                met.append(batch["index"].tolist())
                if how == "frames":
                    batch = batch | {"frames": batch["frames"] * float("nan")}
            loss, parts = original(self, model, batch, epoch)
            if how == "loss" and samples & set(batch["index"].tolist()):
                loss = loss + (loss.detach() * float("inf"))
            return loss, parts

        monkeypatch.setattr(Classification, "__call__", spoilt)
        return met

    return spoil


@pytest.mark.parametrize("how", ["frames", "loss"])
def test_nonfinite_step_is_skipped_and_logged(
    arguments,  # noqa: F811
    poison,
    tmp_path: Path,
    capsys,
    how: str,
) -> None:
    met = poison({3}, how)
    options = {"model__adapter": BATCH_NORM, "training__save_total_limit": 99, "training__logging_steps": 4}
    here(arguments(tmp_path, **options), tmp_path)
    assert len(met) == 3
    assert capsys.readouterr().out.count("step skipped, loss or gradients are not finite; samples: train/") == 3
    actual = [load_checkpoint(path) for path in sorted((tmp_path / "checkpoints").glob("step_*"))]
    same = [
        all(torch.equal(old.weights["model"][name], new.weights["model"][name]) for name in old.weights["model"])
        for old, new in pairwise(actual)
    ]
    first_skipped = actual[0].progress["skipped"]
    assert sum(same) + first_skipped == 3
    assert (actual[-1].progress["skipped"], actual[-1].progress["skipped_in_row"]) in ((3, 0), (3, 1))
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "model.safetensors").values())
    history = json.loads((tmp_path / "history.json").read_text())
    assert sum("skipped_samples" in entry for entry in history) == 3
    assert all(len(entry["skipped_samples"]) == 4 for entry in history if "skipped_samples" in entry)


def test_diverged_run_stops_with_samples(arguments, poison, tmp_path: Path) -> None:  # noqa: F811
    poison(set(range(20)), "frames")
    with pytest.raises(RuntimeError, match=r"4 steps in a row, .* samples of the last: train/.*lower optim.lr"):
        here(arguments(tmp_path, training__max_skipped_steps=4, training__save_steps=0), tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["sessions"][0]["outcome"].startswith("RunError: 4 steps in a row")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_skipped_step_keeps_weights_and_moments(dtype: torch.dtype) -> None:
    """The guard relies on this. Equality is bitwise."""
    layer = nn.Linear(3, 2).to(dtype)
    optimizer = build_optimizer(layer, OptimConfig(lr=0.1, weight_decay=0.1))

    def step(scale: float, skip: float) -> list[Tensor]:
        optimizer.zero_grad()
        (layer(torch.ones(1, 3, dtype=dtype)).sum() * scale).backward()
        optimizer.skip_next_step(torch.tensor(skip))
        optimizer.step()
        moments = [value for state in optimizer.state.values() for value in state.values()]
        return [tensor.detach().clone() for tensor in (*layer.parameters(), *moments)]

    first = step(1.0, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(first, step(float("nan"), 1.0), strict=True))
    assert not torch.equal(first[0], step(1.0, 0.0)[0])


def test_gradients_are_clipped_to_max_norm(arguments, tmp_path: Path) -> None:  # noqa: F811
    here(arguments(tmp_path / "none", training__epochs=1, training__max_grad_norm=1e-30), tmp_path / "none")
    here(arguments(tmp_path / "some", training__epochs=1), tmp_path / "some")
    for name, small in (("none", True), ("some", False)):
        actual = load_checkpoint(tmp_path / name / "checkpoints/step_00000005").optimizer["optimizer"]["state"]
        assert all((state["exp_avg"].abs().max() < 1e-29) == small for state in actual.values())


@pytest.mark.slow
def test_auto_batch_size_keeps_the_step_equal(clip_folder: Path, tmp_path: Path) -> None:
    """In a process of the test, since oneDNN keeps what it could not create without memory."""
    pytest.importorskip("resource")
    all_end_well([Worker(tmp_path / "log", {}, find_in_little_memory, clip_folder, tmp_path)])


def find_in_little_memory(clip_folder: Path, tmp_path: Path) -> None:
    """Search under the system's limit on memory, which simulates a small device."""
    import resource

    accelerator = build_accelerator(TrainingConfig(report_to="none"), str(tmp_path))
    model = clipvid.create_model(f"local-dir:{clip_folder}", adapter="ila", hidden=16, num_frames=3)
    model.set_labels(["walking", "running"])
    item = {"frames": torch.zeros(3, 3, 64, 64, dtype=torch.uint8), "label": 1, "index": 0}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.zeros(1, requires_grad=True).sum().backward()  # starts torch's threads, which need memory too
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (600 << 20), limits[1]))
    try:
        actual = largest_batch_size(accelerator, model, Classification(2, 0), item, 3 * 1024)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert 1 <= actual < 3 * 1024
    assert 3 * 1024 % actual == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("error", ["could not create a primitive", "could not execute a primitive"])
def test_onednn_without_memory_makes_the_batch_smaller(make_model, tmp_path: Path, error: str) -> None:
    accelerator = build_accelerator(TrainingConfig(report_to="none"), str(tmp_path))
    model, tried = make_model("none", ["walking", "running"], tune=["full"]), []

    def fit(model, batch, epoch):
        tried.append(len(batch["label"]))
        if tried[-1] > 2:
            raise RuntimeError(error)
        return Classification(2, 0)(model, batch, epoch)

    item = {"frames": torch.zeros(4, 3, 64, 64, dtype=torch.uint8), "label": 1, "index": 0}
    assert largest_batch_size(accelerator, model, fit, item, 8) == 2
    assert tried == [8, 4, 2]


def test_auto_batch_size_keeps_a_fitting_run(arguments, tmp_path: Path, capsys) -> None:  # noqa: F811
    here(arguments(tmp_path / "given"), tmp_path / "given")
    here(arguments(tmp_path / "found", training__auto_find_batch_size=True), tmp_path / "found")
    assert "batch size 4 on each process, accumulated 1 times per step" in capsys.readouterr().out
    inputs, actual = (load_file(tmp_path / name / "model.safetensors") for name in ("given", "found"))
    assert all(torch.equal(inputs[name], actual[name]) for name in inputs)
