"""A new head is trained alone before the rest of the model: against a plain loop, and in whole runs."""

import copy
import json
import re
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from conftest import random_frames, shake_adapters

import clipvid
from clipvid.data.synthetic.world import WorldConfig, build_world
from clipvid.training.config import FinetuneConfig, TrainingConfig
from clipvid.training.first_head import train_head_first
from clipvid.training.objectives import Classification
from clipvid.training.optim import OptimConfig, ParameterGroup

LABELS = ["a", "b", "c"]
LINEAR = {"name": "linear", "dropout": 0.0}


def fake_trainer(model, clips: int = 6):
    """Return what the head needs of a trainer: two batches of clips, the same in every epoch."""
    frames, labels = random_frames(clips, 2), torch.arange(clips) % 3
    half = clips // 2
    loader = [{"frames": frames[part], "label": labels[part]} for part in (slice(half), slice(half, clips))]
    batches = SimpleNamespace(global_batch=clips, steps_per_epoch=2, set_position=lambda epoch, step: None)
    trainer = SimpleNamespace(
        accelerator=Accelerator(cpu=True),
        loader=loader,
        batches=batches,
        seed=0,
        ready=lambda b: b,
    )
    return trainer, frames, labels


def test_head_equals_that_of_a_plain_loop_over_whole_clips(make_model):
    model = shake_adapters(make_model("ila", LABELS, num_frames=2, head=LINEAR))
    trainer, frames, labels = fake_trainer(model)
    reference = copy.deepcopy(model.head)
    before = {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("head.")}
    objective = Classification(3, 0, label_smoothing=0.1, mixup=0.5)
    optim = OptimConfig(lr=0.5, head_lr=0.02, weight_decay=0.1, groups=[ParameterGroup("encoder.*", 1.0, 0.0)])
    train_head_first(trainer, model, objective, FinetuneConfig(training=TrainingConfig(head_epochs=15), optim=optim))

    matrix, *vectors = sorted(reference.parameters(), key=lambda value: -value.ndim)
    groups = [{"params": [matrix], "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.02, betas=optim.betas, eps=optim.eps)
    model.eval()
    for step in range(30):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1 + torch.tensor(step * torch.pi / 30).cos().item())
        with torch.no_grad():
            video = model.encode_video(frames, normalized=True)
        optimizer.zero_grad()
        F.cross_entropy(reference(video, None, None), labels, label_smoothing=0.1).backward()
        optimizer.step()
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(model.head.state_dict()[name], value, atol=1e-4, rtol=1e-3)
    assert torch.equal(model(frames, normalized=True).logits.argmax(dim=1), labels)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("head", "epochs", "is_trained"),
    [("text", 5, False), ("class_token", 5, False), (LINEAR, 0, False), (LINEAR, 5, True)],
)
def test_head_is_left_alone(make_model, head, epochs, is_trained):
    model = make_model("ila", LABELS, num_frames=2, head=head)
    model.head.is_trained = is_trained
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = SimpleNamespace()  # is not read
    config = FinetuneConfig(training=TrainingConfig(head_epochs=epochs))
    train_head_first(trainer, model, Classification(3, 0), config)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    kinds = {"objects": ["ball", "box"], "motions": ["horizontal"], "num_frames": 8}
    return build_world(WorldConfig(train_per_class=4, val_per_class=1, test_per_class=1, **kinds), root, progress=False)


def finetune(world, output, epochs=1, **options):
    config = {
        "output_dir": str(output),
        "model": {"backbone": "tiny", "num_frames": 2, "head": LINEAR} | options.pop("model", {}),
        "data": {"root": str(world), "train": "train.csv", "val": "test.csv", "num_workers": 0},
        "training": {"epochs": epochs, "per_device_train_batch_size": 4, "report_to": "none"} | options,
        "selection": {"folds": 0},
        "optim": {"lr": 1e-9},
    }
    return clipvid.finetune(config)


def test_run_starts_from_the_trained_head_and_a_longer_run_goes_on(world, tmp_path, capsys):
    printed = []
    with_head = finetune(world, tmp_path / "with", head_epochs=30)
    printed.append(capsys.readouterr().out)
    assert "the head was trained alone first: 120 steps on the features of 16 clips" in printed[0]
    without = finetune(world, tmp_path / "without", head_epochs=0)
    printed.append(capsys.readouterr().out)
    assert "trained alone" not in printed[1]
    histories = [json.loads((run.folder / "history.json").read_text()) for run in (with_head, without)]
    first, other = (next(row["cross_entropy"] for row in rows if "cross_entropy" in row) for rows in histories)
    assert first < other
    assert re.search(r"head\.linear\.weight +\d+ +1e-09 ", printed[0])  # the rate after its own training
    assert re.search(r"head\.linear\.weight +\d+ +0\.01 ", printed[1])
    finetune(world, tmp_path / "with", epochs=2, head_epochs=30)
    assert "trained alone" not in capsys.readouterr().out  # the checkpoint has the head
    model = {"init_from": str(tmp_path / "with")}
    finetune(world, tmp_path / "again", head_epochs=30, model=model)
    assert "trained alone" not in capsys.readouterr().out  # all rows of the head are loaded
