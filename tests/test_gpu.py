"""Training on a GPU: bf16, compiled blocks, DDP on one card, and a resumed run. `make test-gpu` runs these tests."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_training import ROOT, WORLD, arguments

from clipvid.adapters import ADAPTERS
from clipvid.data.synthetic.world import build_world

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; run `make test-gpu` on one"),
]
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=1", "--master_port=0", "--standalone"]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return build_world(WORLD, tmp_path_factory.mktemp("world"), progress=False)


def train(output: Path, words: list[str], launch: list[str] | None = None, stop_after: int | None = None) -> int:
    """Fine-tune in a process of its kind, killed after a checkpoint of step `stop_after`; return its exit code."""
    environment = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    command = [*(launch or [sys.executable]), str(ROOT / "scripts/finetune.py"), *words]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if stop_after is not None:
        while process.poll() is None and not list((output / "checkpoints").glob(f"*{stop_after}*")):
            time.sleep(0.01)
        process.kill()
    text = process.communicate(timeout=500)[0].decode()
    assert stop_after is not None or process.returncode == 0, text[-3000:]
    return process.returncode


def scores(output: Path) -> torch.Tensor:
    """Return the scores of a finished run."""
    return torch.tensor(json.loads((output / "predictions.json").read_text())["scores"])


@pytest.mark.parametrize("adapter", sorted(ADAPTERS))
def test_bf16_forward_equals_the_processors_up_to_rounding(make_model, adapter) -> None:
    model = make_model(adapter, labels=["a ball", "a box"]).eval()
    frames = torch.randint(256, (2, model.num_frames, 3, model.image_size, model.image_size), dtype=torch.uint8)
    with torch.no_grad():
        expected = model(frames).logits.softmax(dim=-1)
        model.cuda()
        exact = model(frames.cuda()).logits.softmax(dim=-1).cpu()
        with torch.autocast("cuda", torch.bfloat16):
            rounded = model(frames.cuda()).logits.float().softmax(dim=-1).cpu()
    torch.testing.assert_close(exact, expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(rounded, expected, atol=0.1, rtol=0)


def test_compiled_run_is_equal_up_to_rounding(world, tmp_path) -> None:
    for name, choice in (("plain", "false"), ("compiled", "true")):
        train(
            tmp_path / name, arguments(world, tmp_path / name, "--optim.lr=1e-3", f"--training.torch_compile={choice}")
        )
    torch.testing.assert_close(scores(tmp_path / "compiled"), scores(tmp_path / "plain"), atol=1e-2, rtol=0)


def test_distributed_run_on_one_card_equals_a_plain_one(world, tmp_path) -> None:
    train(tmp_path / "plain", arguments(world, tmp_path / "plain"))
    train(tmp_path / "ddp", arguments(world, tmp_path / "ddp"), LAUNCH)
    torch.testing.assert_close(scores(tmp_path / "ddp"), scores(tmp_path / "plain"), atol=1e-3, rtol=0)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_resumed_run_is_equal(world, tmp_path, precision) -> None:
    more = [f"--training.mixed_precision={precision}", "--training.save_steps=1", "--training.epochs=6"]
    train(tmp_path / "whole", arguments(world, tmp_path / "whole", *more))
    killed = arguments(world, tmp_path / "killed", *more)
    train(tmp_path / "killed", killed, stop_after=2)
    train(tmp_path / "killed", killed)
    whole, again = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    for name, expected in whole.items():
        torch.testing.assert_close(again[name], expected, atol=0, rtol=0)
