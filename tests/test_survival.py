"""Runs that are killed, interrupted by signals, or lose their disk or tracker, and resume to the same result."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import posix_only
from processes import all_end_well, finetune, finetune_together
from safetensors.torch import load_file

from clipvid.commands import exit_cleanly
from clipvid.data.splits import load_split
from clipvid.data.synthetic.world import WorldConfig, build_world
from clipvid.runs.config_files import parse_config
from clipvid.runs.preemption import EXIT_CODE
from clipvid.training.build import build_accelerator
from clipvid.training.checkpoint import list_checkpoints, load_checkpoint
from clipvid.training.config import FinetuneConfig
from clipvid.training.finetune import finetune as finetune_here

WORLD = WorldConfig(
    objects=("ball", "star"), motions=("horizontal",), num_frames=4, image_size=32,
    train_per_class=5, val_per_class=3, test_per_class=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_world(WORLD, tmp_path_factory.mktemp("small_world"), progress=False)


@pytest.fixture(scope="module")
def arguments(world: Path, clip_folder: Path):
    """Return arguments of a run of 3 epochs of 5 steps of 4 clips, with all state that a resume must restore."""

    def build(output: Path, **changed: object) -> list[str]:
        fixed = {
            "data.root": world,
            "output_dir": output,
            "model.backbone": f"local-dir:{clip_folder}",
            "model.adapter": "{name: ila, hidden: 16, drop_path: 0.3}",
            "model.num_frames": 3,
            "model.pooling": "mit",
            "data.augment.color_jitter": 0.3,
            "data.num_workers": 0,
            "training.epochs": 3,
            "training.per_device_train_batch_size": 4,
            "training.per_device_eval_batch_size": 8,
            "training.save_steps": 1,
            "training.save_total_limit": 3,
            "training.logging_steps": 2,
            "training.mixup": 0.8,
            "training.ema_decay": 0.8,
            "training.load_best_model_at_end": True,
            "training.report_to": "none",
            "selection.folds": 0,
            "optim.lr": 0.003,
        }
        named = {key.replace("__", "."): value for key, value in changed.items()}
        return [f"--{key}={value}" for key, value in (fixed | named).items()]

    return build


@pytest.fixture(scope="module")
def whole(arguments, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an uninterrupted run."""
    output = tmp_path_factory.mktemp("whole")
    all_end_well([finetune(arguments(output / "run"), output / "log")])
    return output / "run"


@pytest.fixture(scope="module")
def whole_by_epoch(arguments, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an uninterrupted run that saves at the end of each epoch only."""
    output = tmp_path_factory.mktemp("whole_by_epoch")
    all_end_well([finetune(arguments(output / "run", training__save_steps=0), output / "log")])
    return output / "run"


def result(output: Path) -> dict:
    """Return all results of a run, except times and its path."""
    tensors = {name: tensor.numpy().tobytes() for name, tensor in load_file(output / "model.safetensors").items()}
    metrics = json.loads((output / "metrics.json").read_text())
    metrics["config"].pop("output_dir")
    history = json.loads((output / "history.json").read_text())
    for entry in history:
        entry.pop("clips_per_second", None)
    return {"tensors": tensors, "predictions": (output / "predictions.json").read_text(), "history": history} | {
        "metrics": metrics
    }


def steps(output: Path) -> list[int]:
    return [int(path.name[5:]) for path in list_checkpoints(output / "checkpoints")]


def check_disk(output: Path, before: int) -> int:
    """Check that every finished checkpoint is intact and none was lost since `before`, and return the newest step."""
    actual = list_checkpoints(output / "checkpoints")
    for path in actual:
        load_checkpoint(path)
    newest = steps(output)[-1] if actual else 0
    assert newest >= before
    return newest


def wait_for(worker, condition) -> bool:
    """Wait until the condition is true. Return False if the process ends first."""
    while worker.process.is_alive():
        if condition():
            return True
        time.sleep(0.0005)
    return False


def die(worker, output: Path, moment: str, chance: random.Random, seconds: float) -> bool:
    """Kill a process at a random moment of the kind. Return True if it was still alive."""
    folder, begun = output / "checkpoints", steps(output)
    if moment == "anywhere":
        worker.process.join(chance.uniform(0, seconds))
    elif moment == "first epoch":
        if not begun and chance.random() < 0.5:
            worker.process.join(chance.uniform(0, 1))
        else:
            wait_for(worker, lambda: bool(steps(output)))
    elif moment == "writing":
        for _ in range(chance.randint(1, 3)):
            wait_for(worker, lambda: not any(folder.glob(".*.partial")))
            wait_for(worker, lambda: any(folder.glob(".*.partial")))
        time.sleep(chance.uniform(0, 0.004))
    else:
        target = 5 * (max(begun, default=0) // 5 + 1)
        wait_for(worker, lambda: target in steps(output))
        time.sleep(chance.uniform(0, 0.2))
    alive = worker.process.is_alive()
    worker.process.kill()
    worker.process.join()
    return alive


def kill_and_compare(arguments, whole: Path, tmp_path: Path, moments: list[str], seed: int) -> dict[str, int]:
    """Kill runs at the moments, up to four times each, let them finish, and return the number of kills of each kind."""
    chance = random.Random(seed)
    (session,) = json.loads((whole / "run.json").read_text())["sessions"]
    seconds = session["wall_seconds"]
    expected, moments, number, done = result(whole), list(moments), 0, dict.fromkeys(moments, 0)
    while moments:
        output, newest = tmp_path / f"run_{number}", 0
        for _ in range(chance.randint(1, 4)):
            if not moments:
                break
            worker = finetune(arguments(output), tmp_path / f"run_{number}.log")
            if not die(worker, output, moments[0], chance, seconds):
                break
            newest = check_disk(output, newest)
            done[moments.pop(0)] += 1
        all_end_well([finetune(arguments(output), tmp_path / f"run_{number}.log")])
        check_disk(output, newest)
        assert result(output) == expected, f"run {number}"
        number += 1
    return done


def test_resume_is_equal_after_random_kills(arguments, whole: Path, tmp_path: Path) -> None:
    done = kill_and_compare(arguments, whole, tmp_path, ["writing", "anywhere"], 0)
    assert sum(done.values()) == 2


@pytest.mark.slow
def test_thirty_kills(arguments, whole: Path, tmp_path: Path) -> None:
    moments = ["first epoch", "writing", "evaluation", "anywhere", "writing", "anywhere"] * 5
    done = kill_and_compare(arguments, whole, tmp_path, moments, int(os.environ.get("CLIPVID_FAULT_SEED", "1")))
    print(f"30 kills: {done}")
    assert sum(done.values()) == 30


@pytest.mark.slow
def test_resume_of_two_processes_is_equal_after_kills(arguments, tmp_path: Path) -> None:
    half = {"training__per_device_train_batch_size": 2, "data__num_workers": 1}
    all_end_well(finetune_together(2, arguments(tmp_path / "whole", **half), tmp_path / "whole_logs"))
    broken = arguments(tmp_path / "broken", **half)
    workers = finetune_together(2, broken, tmp_path / "logs")
    assert wait_for(workers[0], lambda: 7 in steps(tmp_path / "broken"))
    for worker in workers:
        worker.process.kill()
        worker.process.join()
    all_end_well(finetune_together(2, broken, tmp_path / "logs"))
    assert "resuming from epoch 2 of 3, step" in (tmp_path / "logs/rank_0.log").read_text()
    metrics = json.loads((tmp_path / "broken/metrics.json").read_text())
    assert metrics["processes"] == 2
    assert result(tmp_path / "broken") == result(tmp_path / "whole")


def test_number_of_workers_does_not_change_results(arguments, tmp_path: Path) -> None:
    options = {n: arguments(tmp_path / f"{n}", data__num_workers=n, training__epochs=1) for n in (0, 2)}
    all_end_well([finetune(args, tmp_path / f"{n}.log") for n, args in options.items()])
    none, two = result(tmp_path / "0"), result(tmp_path / "2")
    assert two["metrics"]["config"]["data"].pop("num_workers") == 2
    assert none["metrics"]["config"]["data"].pop("num_workers") == 0
    assert none == two


@posix_only
@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGUSR1", marks=pytest.mark.slow)])
def test_sigterm_saves_and_exits_75(arguments, whole_by_epoch: Path, tmp_path: Path, name: str) -> None:
    args = arguments(tmp_path / "asked", training__save_steps=0)
    worker = finetune(args, tmp_path / "asked.log")
    assert wait_for(worker, lambda: 5 in steps(tmp_path / "asked"))
    worker.signal(name)
    assert worker.ended() == EXIT_CODE == 75
    assert "interrupted by a signal; the same command resumes" in worker.said
    sessions = json.loads((tmp_path / "asked/run.json").read_text())["sessions"]
    assert [session["outcome"] for session in sessions] == ["preempted"]
    all_end_well([finetune(args, tmp_path / "asked.log")])
    assert result(tmp_path / "asked") == result(whole_by_epoch)


@pytest.mark.slow
@posix_only
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_signal_to_process_group_keeps_workers(arguments, whole_by_epoch: Path, tmp_path: Path, name: str) -> None:
    """A scheduler sends it to the process and to those that load its videos."""
    args = arguments(tmp_path / "asked", data__num_workers=2, training__save_steps=0)
    worker = finetune(args, tmp_path / "asked.log")
    assert wait_for(worker, lambda: 5 in steps(tmp_path / "asked"))
    children = Path(f"/proc/{worker.process.pid}/task/{worker.process.pid}/children").read_text().split()
    assert len(children) >= 2
    for child in map(int, children):
        os.kill(child, getattr(signal, name))
    worker.signal(name)
    assert worker.ended() == EXIT_CODE, worker.said
    all_end_well([finetune(args, tmp_path / "asked.log")])
    assert result(tmp_path / "asked")["tensors"] == result(whole_by_epoch)["tensors"]


@posix_only
def test_signal_to_one_process_stops_all_at_same_step(arguments, tmp_path: Path) -> None:
    args = arguments(tmp_path / "run", training__per_device_train_batch_size=2, training__epochs=200)
    workers = finetune_together(2, args, tmp_path)
    assert wait_for(workers[0], lambda: 2 in steps(tmp_path / "run"))
    workers[1].signal("SIGUSR1")
    assert [worker.ended() for worker in workers] == [EXIT_CODE, EXIT_CODE], workers[0].said


def here(args: list[str], output: Path) -> dict:
    """Run in this process."""
    config = parse_config(FinetuneConfig, args, "test")
    accelerator = build_accelerator(config.training, config.output_dir)
    train, val = load_split(config.data, "train"), load_split(config.data, "val")
    return finetune_here(config, train, val, accelerator, output)


def test_full_disk_keeps_training_and_checkpoints(arguments, whole: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    """From the second epoch's end until the last epoch begins, no file can be written completely."""
    from clipvid.evaluation import loop as prediction

    resource = pytest.importorskip("resource")
    before, seen = resource.getrlimit(resource.RLIMIT_FSIZE), []
    evaluate = prediction.predict

    def fill(*args):
        actual = evaluate(*args)
        seen.append(steps(tmp_path / "full"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096 if len(seen) == 1 else before[0], before[1]))
        return actual

    monkeypatch.setattr("clipvid.evaluation.summary.predict", fill)
    try:
        here(arguments(tmp_path / "full"), tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert seen[0] == seen[1] == [3, 4, 5]
    assert seen[2] == [13, 14, 15]
    said = capsys.readouterr().out
    assert "step 6 could not be saved: [Errno 27] File too large" in said
    assert result(tmp_path / "full") == result(whole)


def test_full_disk_at_the_end(arguments, whole: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    from clipvid.training import finetune as module

    resource = pytest.importorskip("resource")
    write, before = module.write_run, resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(*args):
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
        write(*args)

    monkeypatch.setattr(module, "write_run", fill)
    try:
        with pytest.raises(SystemExit) as end, exit_cleanly("clipvid finetune"):
            here(arguments(tmp_path / "full"), tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        monkeypatch.undo()
    assert end.value.code == 1
    assert "File too large" in capsys.readouterr().err.splitlines()[-1]
    assert steps(tmp_path / "full") == [13, 14, 15]
    assert not (tmp_path / "full/config.json").exists()
    here(arguments(tmp_path / "full"), tmp_path / "full")
    assert "resuming from epoch 3 of 3, step 15" in capsys.readouterr().out
    assert result(tmp_path / "full") == result(whole)


def test_unwritable_folder_is_refused_early(arguments, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    worker = finetune(arguments(tmp_path / "file" / "run"), tmp_path / "log")
    assert worker.ended() == 1
    assert "Not a directory" in worker.said
    assert "Traceback" not in worker.said


def test_failed_tracker_does_not_stop_the_run(arguments, tmp_path: Path, capsys, monkeypatch) -> None:
    from accelerate.tracking import TensorBoardTracker

    def lose(self, values, step=None, **options):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(TensorBoardTracker, "log", lose)
    here(arguments(tmp_path / "lost", training__report_to="tensorboard"), tmp_path / "lost")
    assert capsys.readouterr().out.count("the tracker failed (ConnectionError('no route to host'))") == 1
    assert len(json.loads((tmp_path / "lost/history.json").read_text())) > 8


def test_another_number_of_clips_per_step_is_refused(arguments, tmp_path: Path) -> None:
    here(arguments(tmp_path, training__epochs=1), tmp_path)
    (tmp_path / "metrics.json").unlink()
    with pytest.raises(ValueError, match="trained with 4 clips per step, this run has 2"):
        here(arguments(tmp_path, training__epochs=1, training__per_device_train_batch_size=2), tmp_path)


def test_found_batch_size_is_kept_on_resume(arguments, tmp_path: Path, capsys, monkeypatch) -> None:
    """Memory is limited at first. The resumed run has enough for all clips, but mixes the same ones as before."""
    from clipvid.training.objectives import Classification

    call, stop = Classification.__call__, {"after": 0}

    def scarce(self, model, batch, epoch):
        if len(batch["frames"]) > 2:
            raise RuntimeError("CUDA out of memory. Tried")
        stop["after"] -= 1
        if not stop["after"]:
            raise KeyboardInterrupt
        return call(self, model, batch, epoch)

    monkeypatch.setattr(Classification, "__call__", scarce)
    args = {"training__auto_find_batch_size": True}
    here(arguments(tmp_path / "whole", **args), tmp_path / "whole")
    stop["after"] = 1 + 2 * 7
    with pytest.raises(KeyboardInterrupt):
        here(arguments(tmp_path / "broken", **args), tmp_path / "broken")
    monkeypatch.undo()
    capsys.readouterr()
    here(arguments(tmp_path / "broken", **args), tmp_path / "broken")
    assert "batch size 2 on each process, accumulated 2 times per step" in capsys.readouterr().out
    assert result(tmp_path / "broken") == result(tmp_path / "whole")


def test_run_record(whole: Path) -> None:
    record = json.loads((whole / "run.json").read_text())
    assert record["config"]["optim"]["lr"] == 0.003
    assert record["config"]["seed"] == 0
    assert {len(digest) for digest in record["manifests"].values()} == {64}
    (session,) = record["sessions"]
    assert (session["outcome"], session["steps"], session["clips"]) == ("finished", 15, 60)
    assert session["packages"]["torch"] == torch.__version__.split("+")[0] or session["packages"]["torch"]
    assert session["hardware"]["distributed_type"] == "NO"
    assert session["wall_seconds"] > session["training_seconds"] > 0
    assert session["clips_per_second"] == pytest.approx(60 / session["training_seconds"])
    assert session["peak_memory_bytes"] > 1 << 24


def test_result_is_average_or_best(whole: Path) -> None:
    last = load_checkpoint(whole / "checkpoints/step_00000015")
    metrics = json.loads((whole / "metrics.json").read_text())
    curve = [entry for entry in json.loads((whole / "history.json").read_text()) if "val_top1" in entry]
    best = max(curve, key=lambda entry: entry["val_top1"])
    assert len(curve) == 3
    assert metrics["selected"] == {"value": best["val_top1"], "epoch": best["epoch"], "by": "val_top1"}
    assert metrics["top1"]["value"] == best["val_top1"]
    name = "pooling.position"
    assert not torch.equal(last.weights["ema"][name], last.weights["model"][name])


def test_exponential_average_equals_formula(arguments, tmp_path: Path) -> None:
    here(arguments(tmp_path, training__save_total_limit=99, training__epochs=1), tmp_path)
    actual = [load_checkpoint(path) for path in list_checkpoints(tmp_path / "checkpoints")]
    average = actual[0].weights["ema"]["pooling.position"].double()
    for checkpoint in actual[1:]:
        average = 0.8 * average + 0.2 * checkpoint.weights["model"]["pooling.position"].double()
        torch.testing.assert_close(checkpoint.weights["ema"]["pooling.position"].double(), average, rtol=0, atol=1e-6)
