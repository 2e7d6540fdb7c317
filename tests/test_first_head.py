"""A new head is trained alone before the rest of the model: against plain descent, and in whole runs."""

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
from clipvid.training.config import TrainingConfig
from clipvid.training.first_head import train_head_first
from clipvid.training.objectives import Classification, SeveralLabels

LABELS = ["a", "b", "c"]
LINEAR = {"name": "linear", "dropout": 0.0}


def fake_trainer(model, clips: int = 6, several: bool = False):
    """Return what the head needs of a trainer: two batches of clips, the same in every epoch."""
    frames, labels = random_frames(clips, 2), torch.arange(clips) % 3
    if several:
        labels = (torch.arange(clips)[:, None] >> torch.arange(3)) % 2 == 1
    half = clips // 2
    loader = [{"frames": frames[part], "label": labels[part]} for part in (slice(half), slice(half, clips))]
    batches = SimpleNamespace(set_position=lambda epoch, step: None)
    trainer = SimpleNamespace(
        accelerator=Accelerator(cpu=True),
        loader=loader,
        batches=batches,
        ready=lambda b: b,
    )
    return trainer, frames, labels


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("kind", [LINEAR, "cosine"])
def test_head_ends_at_the_minimum_that_plain_descent_finds(make_model, kind, several):
    """The minimum is that of the loss on whole clips, plus a penalty on the length of weights."""
    model = shake_adapters(make_model("ila", LABELS, num_frames=2, head=kind))
    trainer, frames, labels = fake_trainer(model, several=several)
    reference = copy.deepcopy(model.head)
    before = {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("head.")}
    objective = SeveralLabels(0, mixup=0.5) if several else Classification(3, 0, label_smoothing=0.1, mixup=0.5)
    train_head_first(trainer, model, objective, TrainingConfig(head_epochs=500))

    def total(head):
        scores, distance = head(video, None, None), 0.0
        for (name, value), start in zip(head.named_parameters(), first, strict=True):
            distance = distance + (value if name == "linear.weight" else value - start).square().sum()
        distance = 2e-5 * video.shape[1] / 2 * distance
        if several:
            return F.binary_cross_entropy_with_logits(scores, labels.float()) + distance / 3
        return F.cross_entropy(scores, labels, label_smoothing=0.1) + distance

    first = [parameter.detach().clone() for parameter in reference.parameters()]
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.005 if kind == "cosine" else 0.3, momentum=0.9)
    with torch.no_grad():
        video = model.eval().encode_video(frames, normalized=True)
    for _ in range(3000):
        optimizer.zero_grad()
        total(reference.eval()).backward()
        optimizer.step()
    reached, expected = total(model.head).item(), total(reference).item()
    assert reached <= expected + 1e-4
    assert expected <= reached + 0.02
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
    train_head_first(trainer, model, Classification(3, 0), TrainingConfig(head_epochs=epochs))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    kinds = {"objects": ["ball", "box"], "motions": ["horizontal"], "num_frames": 8}
    return build_world(WorldConfig(train_per_class=4, val_per_class=1, test_per_class=1, **kinds), root, progress=False)


def finetune(world, output, epochs=1, **options):
    optim = {"lr": 1e-9} | options.pop("optim", {})
    config = {
        "output_dir": str(output),
        "model": {"backbone": "tiny", "num_frames": 2, "head": LINEAR} | options.pop("model", {}),
        "data": {"root": str(world), "train": "train.csv", "val": "test.csv", "num_workers": 0},
        "training": {"epochs": epochs, "per_device_train_batch_size": 4, "report_to": "none"} | options,
        "selection": {"folds": 0},
        "optim": optim,
    }
    return clipvid.finetune(config)


def test_run_starts_from_the_trained_head_and_a_longer_run_goes_on(world, tmp_path, capsys):
    printed = []
    with_head = finetune(world, tmp_path / "with", head_epochs=30)
    printed.append(capsys.readouterr().out)
    assert "the head was trained alone first, on the features of 16 clips, to a loss of 0." in printed[0]
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


@pytest.mark.parametrize(("head_epochs", "rate", "warned"), [(5, 0.02, 1), (5, 1e-9, 0), (5, None, 0), (0, 0.02, 0)])
def test_rate_of_a_head_that_is_fitted_first_is_not_ignored_in_silence(
    world, tmp_path, recwarn, head_epochs, rate, warned
):
    finetune(world, tmp_path / "out", head_epochs=head_epochs, optim={"head_lr": rate})
    texts = [str(each.message) for each in recwarn if "head_lr" in str(each.message)]
    assert len(texts) == warned
    assert all("optim.head_lr=0.02 is not used" in text and "training.head_epochs to 0" in text for text in texts)
