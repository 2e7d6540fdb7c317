"""transformers' Trainer on clipvid's models: the same weights as the training loop, and checkpoint round trips."""

import contextlib
import io
from pathlib import Path

import pytest
import torch
import transformers
from accelerate import Accelerator
from conftest import random_frames, shake_adapters
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset, SequentialSampler
from transformers import AutoModelForVideoClassification, TrainingArguments, pipeline
from transformers.trainer_utils import load_sharded_checkpoint

from clipvid.data.batches import TrainBatches
from clipvid.hub.loading import from_pretrained
from clipvid.training.objectives import Classification
from clipvid.training.optim import OptimConfig, build_optimizer, build_scheduler
from clipvid.training.state import LoopSettings
from clipvid.training.trainer import Trainer

LABELS = ["walking", "running", "jumping"]
OPTIM = OptimConfig(lr=1e-3)
CLIPS = 8
KINDS = {
    "adapters": {"adapter": ["ila"]},
    "linear head": {"adapter": ["sifa"], "head": {"name": "linear", "dropout": 0.0}},
    "lora": {"tune": ["head", {"name": "lora", "rank": 2, "towers": ["image", "text"]}]},
    "whole tower": {"tune": ["full", "text"]},
}


class Clips(Dataset):
    """Random clips under the Trainer's names, in the order of `order`, or under those of the training loop."""

    def __init__(self, order: list[int] | None = None):
        self.order = order
        generator = torch.Generator().manual_seed(0)
        self.frames = torch.randint(256, (CLIPS, 3, 3, 64, 64), dtype=torch.uint8, generator=generator)

    def __len__(self) -> int:
        return CLIPS if self.order is None else len(self.order)

    def __getitem__(self, key):
        if self.order is not None:
            index = self.order[key]
            return {"pixel_values_videos": self.frames[index], "labels": index % len(LABELS)}
        epoch, index = key
        return {"frames": self.frames[index], "label": index % len(LABELS), "index": index, "epoch": epoch}


class InOrder(transformers.Trainer):
    def _get_train_sampler(self, *_):
        return SequentialSampler(self.train_dataset)


def arguments(folder: Path, steps: int, **options) -> TrainingArguments:
    return TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=2, save_steps=2, report_to="none", use_cpu=True,
        label_names=["labels"], disable_tqdm=True, logging_steps=1, seed=3, **options,
    )  # fmt: skip


def trainer(model, folder: Path, steps: int, order: list[int] | None = None, **options) -> InOrder:
    data = Clips(order or list(range(CLIPS)))
    optimizer = build_optimizer(model.clip, OPTIM)
    optimizers = optimizer, build_scheduler(optimizer, OPTIM, steps)
    return InOrder(
        model, arguments(folder, steps, **options), train_dataset=data, eval_dataset=data, optimizers=optimizers
    )


@pytest.fixture(params=KINDS)
def saved(request, make_model, tmp_path) -> Path:
    model = shake_adapters(make_model(labels=LABELS, **KINDS[request.param]))
    model.save_pretrained(tmp_path / "start")
    return tmp_path / "start"


def assert_same_weights(one, other) -> None:
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def differ(one, other) -> bool:
    return any(not torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_trainer_equals_own_loop(saved, tmp_path):
    own, start = from_pretrained(saved), from_pretrained(saved)
    batches = TrainBatches(CLIPS, 2, seed=3)
    order = [index for batch in batches for _, index in batch]
    batches.set_position(0)
    optimizer = build_optimizer(own, OPTIM)
    loop = Trainer(
        Accelerator(cpu=True),
        own,
        Classification(len(LABELS), 3),
        DataLoader(Clips(), batch_sampler=batches),
        optimizer,
        build_scheduler(optimizer, OPTIM, 4),
        LoopSettings(epochs=1),
        3,
        tmp_path / "own",
    )
    with contextlib.redirect_stderr(io.StringIO()):
        assert loop.run().step == 4
    model = AutoModelForVideoClassification.from_pretrained(saved)
    trainer(model, tmp_path / "hf", 4, order).train()
    assert differ(own, start)
    for name, value in own.state_dict().items():
        torch.testing.assert_close(model.clip.state_dict()[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_trainer_loads_best_model_at_end(saved, tmp_path):
    model = AutoModelForVideoClassification.from_pretrained(saved)
    run = trainer(
        model, tmp_path / "hf", 4, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True,
        metric_for_best_model="eval_runtime", greater_is_better=True,
    )  # fmt: skip
    scores = iter([2.0, 1.0])
    evaluate = run.evaluate
    run.evaluate = lambda *args, **kwargs: evaluate(*args, **kwargs) | {"eval_runtime": next(scores)}
    run.train()
    assert run.state.best_model_checkpoint.endswith("checkpoint-2")
    best = AutoModelForVideoClassification.from_pretrained(tmp_path / "hf" / "checkpoint-2")
    assert_same_weights(model, best)
    assert differ(best, AutoModelForVideoClassification.from_pretrained(tmp_path / "hf" / "checkpoint-4"))
    with torch.no_grad():
        assert torch.equal(model.eval()(random_frames()).logits, best(random_frames()).logits)


def test_trainer_resume_is_bitwise_equal(saved, tmp_path):
    def load():
        return AutoModelForVideoClassification.from_pretrained(saved)

    whole, resumed = load(), load()
    order = list(range(CLIPS)) * 2
    trainer(whole, tmp_path / "whole", 6, order).train()
    run = trainer(resumed, tmp_path / "parts", 6, order)
    run.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert_same_weights(whole, resumed)
    assert differ(whole, load())


def test_trained_folder_serves_the_pipeline(make_model, tmp_path):
    make_model("ila", LABELS).save_pretrained(tmp_path / "start")
    model = AutoModelForVideoClassification.from_pretrained(tmp_path / "start")
    run = trainer(model, tmp_path / "hf", 2)
    run.train()
    run.save_model(tmp_path / "done")
    frames = torch.randint(256, (9, 80, 64, 3), dtype=torch.uint8)
    actual = pipeline("video-classification", model=str(tmp_path / "done"), device="cpu")(frames)
    assert {item["label"] for item in actual} == set(LABELS)
    assert_same_weights(model.clip, from_pretrained(tmp_path / "done"))


@pytest.mark.parametrize("damage", ["missing", "unexpected", "shape", "empty", "full missing"])
def test_mismatched_weights_are_refused(make_model, tmp_path, damage):
    make_model("ila", LABELS).save_pretrained(tmp_path)
    model = AutoModelForVideoClassification.from_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    name = min(state)
    if damage == "missing":
        del state[name]
    elif damage == "unexpected":
        state["head.other"] = torch.zeros(1)
    elif damage == "shape":
        state[name] = torch.zeros(1, 1, 1)
    elif damage == "empty":
        state = {}
    else:
        state = dict(model.state_dict())
        del state[min(state)]
    with pytest.raises(ValueError, match="weights do not fit"):
        model.load_state_dict(state, strict=False)


@torch.no_grad()
def test_sharded_folder_round_trip_is_bitwise(saved, tmp_path):
    model = AutoModelForVideoClassification.from_pretrained(saved)
    model.save_pretrained(tmp_path / "many")
    model.save_pretrained(tmp_path / "many", max_shard_size="2KB")
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 1
    assert not (tmp_path / "many" / "model.safetensors").exists()
    assert_same_weights(from_pretrained(tmp_path / "many"), model.clip)
    with pytest.raises(ValueError, match="weights do not fit"):  # transformers would load the files one by one
        load_sharded_checkpoint(model, tmp_path / "many", strict=False)
    model.save_pretrained(tmp_path / "many")
    assert {path.name for path in (tmp_path / "many").glob("model*")} == {"model.safetensors"}
    assert_same_weights(AutoModelForVideoClassification.from_pretrained(tmp_path / "many"), model)


@torch.no_grad()
def test_given_state_is_saved(make_model, tmp_path):
    make_model("ila", LABELS).save_pretrained(tmp_path / "a")
    model = AutoModelForVideoClassification.from_pretrained(tmp_path / "a")
    other = {name: value + 0.5 for name, value in model.state_dict().items() if "adapters" in name and value.ndim}
    model.save_pretrained(tmp_path / "b", state_dict=dict(model.state_dict()) | other)
    actual = AutoModelForVideoClassification.from_pretrained(tmp_path / "b").state_dict()
    assert all(torch.equal(actual[name], value) for name, value in other.items())
    model.save_pretrained(tmp_path / "c", is_main_process=False)
    assert not (tmp_path / "c").exists()
    with pytest.raises(ValueError, match="weights do not fit"):
        model.save_pretrained(tmp_path / "c", state_dict=other)


def test_gradient_checkpointing_changes_no_gradient(make_model, tmp_path):
    make_model("ila", LABELS).save_pretrained(tmp_path)
    gradients = []
    for enable in (False, True):
        model = AutoModelForVideoClassification.from_pretrained(tmp_path).train()
        if enable:
            model.gradient_checkpointing_enable()
            assert model.clip.encoder.gradient_checkpointing
        model(random_frames(), labels=torch.tensor([0, 1])).loss.backward()
        gradients.append([value.grad for value in model.parameters() if value.requires_grad])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)
    model.gradient_checkpointing_disable()
    assert not model.clip.encoder.gradient_checkpointing
    with pytest.raises(ValueError, match="use_reentrant"):
        model.gradient_checkpointing_enable({"use_reentrant": True})


@pytest.mark.parametrize("option", ["commit_message", "create_pr", "variant", "token", "distributed_checkpoint"])
def test_saving_refuses_options_without_effect(make_model, tmp_path, option):
    make_model("ila", LABELS).save_pretrained(tmp_path)
    model = AutoModelForVideoClassification.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{option}: not an option of saving"):
        model.save_pretrained(tmp_path, **{option: "x"})
