"""Several processes: they train like one on the same clips, sharded or not, and none waits for a dead one."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from conftest import STEADY, fresh_backbone, posix_only, shake
from processes import SHARDED, Worker, all_end_well, finetune, finetune_together, together
from safetensors.torch import load_file
from test_survival import arguments, steps, wait_for, world  # noqa: F401
from torch.utils.data import Dataset

import clipvid
from clipvid import InputError
from clipvid.adapters import ADAPTERS
from clipvid.data.loader import TrainBatches, build_loader
from clipvid.distributed import by_main_process, is_sharded
from clipvid.model.config import ModelConfig
from clipvid.model.factory import assemble_model
from clipvid.model.video_clip import VideoCLIP
from clipvid.training.build import build_accelerator
from clipvid.training.checkpoint import load_checkpoint
from clipvid.training.config import TrainingConfig
from clipvid.training.objectives import Classification
from clipvid.training.optim import OptimConfig, build_optimizer, build_scheduler
from clipvid.training.trainer import Trainer

OTHERS = [name for name in ADAPTERS if name not in ("none", "ila")]
STEPS, CLIPS = 10, 4
TYPES = {"one": ("NO", 1), "ddp": ("MULTI_CPU", 2), "fsdp": ("FSDP", 2)}
LAUNCHES = Path(__file__).parent.parent / "configs" / "accelerate"


class Noise(Dataset):
    """Clips of noise, uint8 [3, 3, 64, 64], by (epoch, index)."""

    def __len__(self) -> int:
        return STEPS * CLIPS

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(1000 + key[1])
        frames = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=generator)
        return {"frames": frames, "label": key[1] % 3, "index": key[1]}


def build(name: str, folder: Path) -> VideoCLIP:
    """Build a model in float64 without randomness and batch statistics. With ILA the text tower is trained too."""
    source = f"local-dir:{folder}"
    adapter = {"name": name, **STEADY.get(name, {})}
    tune = ["adapters", "head"] + (["text"] if name == "ila" else [])
    backbone = fresh_backbone(source)
    torch.manual_seed(6)
    model = assemble_model(backbone, ModelConfig(source, adapter=adapter, num_frames=3, pooling="mit", tune=tune))
    model.set_labels(["walking", "running", "jumping"])
    for seed, module in enumerate(model.encoder.adapters()):
        shake(module, 0.05, seed)
    return model.double()


def train(names: list[str], folder: Path, output: Path) -> None:
    """Train ten steps of every adapter, each with a checkpoint. Write the kind of this process to a file."""
    training = TrainingConfig(
        epochs=1, save_steps=1, save_total_limit=STEPS, logging_steps=1, report_to="none", max_grad_norm=1.0
    )
    accelerator = build_accelerator(training, str(output))
    kinds = {}
    for name in names:
        model = build(name, folder)
        share = CLIPS // accelerator.num_processes
        batches = TrainBatches(
            len(Noise()), share, seed=0, world_size=accelerator.num_processes, rank=accelerator.process_index
        )
        loader = build_loader(Noise(), batches, 0)
        optimizer = build_optimizer(model, config := OptimConfig(lr=1e-3, weight_decay=0.1))
        scheduler = build_scheduler(optimizer, config, STEPS)
        objective = Classification(3, 0)
        trainer = Trainer(accelerator, model, objective, loader, optimizer, scheduler, training, 0, output / name)
        trainer.run()
        unused = getattr(trainer.wrapped, "find_unused_parameters", False)
        kinds[name] = [accelerator.distributed_type.value, accelerator.num_processes, is_sharded(model), unused]
        accelerator.free_memory()
    (output / f"kind_{accelerator.process_index}.json").write_text(json.dumps(kinds))


def train_under_every_engine(names: list[str], clips: Path, output: Path) -> Path:
    """Train ten steps by one process, by two, and by two with everything sharded."""
    for engine, (_, count) in TYPES.items():
        folder, task = output / engine, (train, names, clips, output / engine)
        if count == 1:
            all_end_well([Worker(folder / "log", {}, *task)])
        else:
            all_end_well(together(count, folder, *task, **(SHARDED if engine == "fsdp" else {})))
    return output


@pytest.fixture(scope="module")
def trained(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the results of every engine for ILA."""
    return train_under_every_engine(["ila"], clip_folder, tmp_path_factory.mktemp("ila"))


@pytest.fixture(scope="module")
def others(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the results of every engine for the other adapters."""
    return train_under_every_engine(OTHERS, clip_folder, tmp_path_factory.mktemp("others"))


@pytest.mark.parametrize("engine", TYPES)
def test_every_engine_is_used(trained: Path, engine: str) -> None:
    kind, count = TYPES[engine]
    for rank in range(count):
        kinds = json.loads((trained / engine / f"kind_{rank}.json").read_text())
        assert kinds == {"ila": [kind, count, engine == "fsdp", False]}


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_two_processes_train_like_one(trained: Path, engine: str) -> None:
    compare(trained, engine, "ila")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", OTHERS)
def test_two_processes_train_every_adapter_like_one(others: Path, engine: str, name: str) -> None:
    compare(others, engine, name)


def compare(trained: Path, engine: str, name: str) -> None:
    """Compare weights after each step, and losses, with those of one process."""
    moved = 0.0
    first = load_checkpoint(trained / "one" / name / "checkpoints" / "step_00000001").weights["model"]
    for step in range(1, STEPS + 1):
        one, two = (
            load_checkpoint(trained / kind / name / "checkpoints" / f"step_{step:08d}") for kind in ("one", engine)
        )
        assert one.weights["model"].keys() == two.weights["model"].keys()
        for key, tensor in one.weights["model"].items():
            actual = two.weights["model"][key]
            torch.testing.assert_close(actual, tensor, rtol=0, atol=1e-8, msg=lambda text, key=key: f"{key}: {text}")
            moved = max(moved, float((tensor - first[key]).abs().max()))
        pairs = zip(one.progress["history"], two.progress["history"], strict=True)
        assert all(abs(a["loss"] - b["loss"]) < 1e-5 for a, b in pairs)
    assert moved > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("begun", "ended"), [("fsdp", "one"), ("one", "fsdp")])
def test_run_resumes_under_another_engine(
    trained: Path, clip_folder: Path, tmp_path: Path, begun: str, ended: str
) -> None:
    """A checkpoint contains whole tensors under every engine."""
    source = trained / begun / "ila" / "checkpoints" / "step_00000006"
    shutil.copytree(source, tmp_path / "ila" / "checkpoints" / source.name)
    if ended == "one":
        all_end_well([Worker(tmp_path / "log", {}, train, ["ila"], clip_folder, tmp_path)])
    else:
        all_end_well(together(2, tmp_path, train, ["ila"], clip_folder, tmp_path, **SHARDED))
    last = f"ila/checkpoints/step_{STEPS:08d}"
    actual, expected = (load_checkpoint(folder / last) for folder in (tmp_path, trained / "one"))
    for key, tensor in expected.weights["model"].items():
        torch.testing.assert_close(actual.weights["model"][key], tensor, rtol=0, atol=1e-8)
    history = actual.progress["history"]
    assert [entry["step"] for entry in history] == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_sharded_run_writes_loadable_folder(arguments, tmp_path: Path) -> None:  # noqa: F811
    options = {
        "training__per_device_train_batch_size": 2,
        "training__per_device_eval_batch_size": 5,
        "training__epochs": 2,
        "model__adapter": "{name: ila, hidden: 16, norm: frozen_batch}",
    }
    for name, environment in (("ddp", {}), ("fsdp", SHARDED)):
        logs = tmp_path / f"{name}_logs"
        all_end_well(finetune_together(2, arguments(tmp_path / name, **options), logs, **environment))
    ddp, fsdp = (load_file(tmp_path / name / "model.safetensors") for name in ("ddp", "fsdp"))
    assert ddp.keys() == fsdp.keys()
    for key, tensor in ddp.items():
        torch.testing.assert_close(fsdp[key], tensor, rtol=0, atol=1e-4)
    record = json.loads((tmp_path / "fsdp/run.json").read_text())
    assert record["sessions"][0]["hardware"]["distributed_type"] == "FSDP"
    model = clipvid.from_pretrained(tmp_path / "fsdp")
    assert model.encode_video(torch.zeros(1, 3, 3, 64, 64, dtype=torch.uint8)).isfinite().all()


def long_tasks(folder: Path) -> None:
    accelerator = Accelerator()

    def task() -> str:
        time.sleep(0.5)
        return f"from process {accelerator.process_index}"

    def fail() -> str:
        raise InputError("the same video is in both lists")

    actual = [by_main_process(accelerator, task, seconds=0.1)]
    try:
        by_main_process(accelerator, fail, seconds=0.1)
    except InputError as error:
        actual.append(str(error))
    (folder / f"found_{accelerator.process_index}.json").write_text(json.dumps(actual))


def test_task_of_main_process_has_one_result_or_error(tmp_path: Path) -> None:
    all_end_well(together(2, tmp_path, long_tasks, tmp_path))
    expected = ["from process 0", "the same video is in both lists"]
    assert [json.loads((tmp_path / f"found_{rank}.json").read_text()) for rank in (0, 1)] == [expected] * 2


def test_fsdp_is_used_or_refused(arguments, tmp_path: Path) -> None:  # noqa: F811
    alone = finetune(arguments(tmp_path / "run"), tmp_path / "log", **SHARDED)
    assert alone.ended() == 1
    assert "selects FSDP, but Accelerate uses" in alone.said


@pytest.mark.slow
@posix_only
@pytest.mark.parametrize(("name", "timeout"), [("SIGKILL", 1800), ("SIGSTOP", 5)])
def test_dead_or_hanging_process_ends_all(arguments, tmp_path: Path, name: str, timeout: int) -> None:  # noqa: F811
    options = {"training__per_device_train_batch_size": 2, "training__epochs": 500, "training__ddp_timeout": timeout}
    workers = finetune_together(2, arguments(tmp_path / "run", **options), tmp_path)
    assert wait_for(workers[0], lambda: bool(steps(tmp_path / "run")))
    workers[1].signal(name)
    try:
        assert workers[0].ended(120) not in (0, 75)
    finally:
        workers[1].process.kill()
    assert steps(tmp_path / "run")


@pytest.mark.parametrize("path", sorted(LAUNCHES.glob("*.yaml")), ids=lambda path: path.stem)
def test_launch_files(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.num_processes >= 1
    assert yaml.safe_load(path.read_text())["distributed_type"] == config.distributed_type


def test_there_is_a_launch_file_for_every_engine() -> None:
    names = {"cpu", "one_gpu", "many_gpus", "many_nodes", "fsdp2", "fsdp2_zero2"}
    assert {path.stem for path in LAUNCHES.glob("*.yaml")} == names
