"""Training from config to model folder: on real files, killed and resumed, on one process and on two."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from conftest import REPOSITORY
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from test_report import ParsedPage

import clipvid
from clipvid.commands import finetune as command
from clipvid.data.splits import load_split
from clipvid.data.synthetic.world import WorldConfig, build_world
from clipvid.runs.config_files import parse_config, read_config
from clipvid.training.build import build_accelerator, build_finetune_model
from clipvid.training.config import FinetuneConfig
from clipvid.training.finetune import finetune
from clipvid.training.optim import OptimConfig, ParameterGroup, build_optimizer, build_scheduler

ROOT = Path(__file__).parent.parent
WORLD = WorldConfig(
    objects=("ball", "star"), motions=("horizontal",), num_frames=6, image_size=48,
    train_per_class=5, val_per_class=3, test_per_class=0,
)  # fmt: skip


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    return build_world(WORLD, tmp_path_factory.mktemp("world"), progress=False)


def arguments(world: Path, output: Path, *more: str) -> list[str]:
    """Return command-line arguments of a run of 2 epochs of 2 steps of 8 clips."""
    fixed = {
        "data.root": world,
        "output_dir": output,
        "model.backbone": "tiny",
        "model.adapter": "{name: ila, hidden: 64, norm: frozen_batch}",
        "model.num_frames": 4,
        "training.epochs": 2,
        "training.per_device_train_batch_size": 8,
        "training.report_to": "none",
        "selection.folds": 0,
        "data.num_workers": 0,
        "optim.lr": 0.01,
    }
    return [f"--{key}={value}" for key, value in fixed.items()] + list(more)


def run(config: FinetuneConfig, output: Path) -> dict:
    accelerator = build_accelerator(config.training, config.output_dir)
    train, val = load_split(config.data, "train"), load_split(config.data, "val")
    return finetune(config, train, val, accelerator, output)


def parse(world: Path, output: Path, *more: str) -> FinetuneConfig:
    return parse_config(FinetuneConfig, arguments(world, output, *more), "test")


def test_a_run_gives_a_model_folder(world: Path, tmp_path: Path, capsys) -> None:
    command.main(arguments(world, tmp_path))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["top1"]["count"] == metrics["pairs"]["count"] == 12
    assert sorted(json.loads((tmp_path / "predictions.json").read_text())["indices"]) == list(range(12))
    model = clipvid.from_pretrained(tmp_path)
    assert model.labels[0] == "ball moving left"
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "clipvid"
    assert "ila" in card.data.tags
    assert f"| top1 | {metrics['top1']['value']:.3f} (" in card.content
    assert "ball moving left, ball moving right" in card.content
    assert {name.split(".")[0] for name in load_file(tmp_path / "model.safetensors")} == {"encoder"}
    report = tmp_path / "report.html"
    assert f"report: {report}\n" in capsys.readouterr().out
    page = ParsedPage(report.read_text(encoding="utf-8"))
    headings = ["Results", "Accuracy by motion pair", "More figures", "Calibration", "Clips", "Learning curves"]
    assert all(heading in page.words for heading in [*headings, "Confusion matrices", "Details"])
    assert f"{metrics['top1']['value']:.2f}" in page.text
    before, rendered = (tmp_path / "model.safetensors").read_bytes(), report.read_bytes()
    report.unlink()
    command.main(arguments(world, tmp_path))
    again = capsys.readouterr().out
    assert "already finished" in again
    assert f"report: {report}\n" in again
    assert report.read_bytes() == rendered
    assert (tmp_path / "model.safetensors").read_bytes() == before
    with pytest.raises(FileExistsError, match="seed"):
        command.main(arguments(world, tmp_path, "--seed=1"))


@pytest.mark.parametrize("tune", ["[adapters, head]", "[{name: lora, rank: 2}, {name: partial, blocks: 1}, coop]"])
def test_only_what_is_tuned_moves(world: Path, tmp_path: Path, tune: str) -> None:
    config = parse(world, tmp_path, f"--model.tune={tune}")
    run(config, tmp_path)
    torch.manual_seed(config.seed)
    fresh = build_finetune_model(
        config, ["ball moving left", "ball moving right", "star moving left", "star moving right"]
    )
    trained = clipvid.from_pretrained(tmp_path)
    moved = {
        name
        for (name, old), new in zip(fresh.named_parameters(), trained.parameters(), strict=True)
        if not torch.equal(old, new)
    }
    assert moved == {name for name, parameter in fresh.named_parameters() if parameter.requires_grad}


@pytest.mark.slow
def test_frozen_bf16_run_is_bitwise_equal(world: Path, tmp_path: Path) -> None:
    """Runs in separate processes, since Accelerate allows one precision per process."""
    plain, lowered = tmp_path / "plain", tmp_path / "lowered"
    more = ["--training.mixed_precision=bf16", "--model.tune=[adapters, lora]", "--training.epochs=1"]
    for output, option in ((plain, "false"), (lowered, "true")):
        words = arguments(world, output, *more, f"--training.frozen_bf16={option}")
        launch = [sys.executable, str(ROOT / "scripts/finetune.py"), *words]
        ended = subprocess.run(launch, capture_output=True, text=True, timeout=300)
        assert ended.returncode == 0, ended.stderr
        assert "encoder.layers.0-3.block.attn (lora)" in ended.stdout
    for name in ("model.safetensors", "lora/adapter_model.safetensors", "predictions.json"):
        assert (plain / name).read_bytes() == (lowered / name).read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_compiled_run_is_equal_up_to_rounding(world: Path, tmp_path: Path) -> None:
    outputs = tmp_path / "plain", tmp_path / "compiled"
    for output, more in zip(outputs, ([], ["--training.torch_compile=true"]), strict=True):
        command.main(arguments(world, output, "--model.tune=[adapters, lora]", "--optim.lr=0.001", *more))
    plain, compiled = (torch.tensor(json.loads((path / "predictions.json").read_text())["scores"]) for path in outputs)
    torch.testing.assert_close(compiled, plain, atol=1e-3, rtol=0)


def test_frozen_bf16_requires_bf16_autocast(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen_bf16 needs mixed_precision: bf16, got no"):
        parse(world, tmp_path, "--training.frozen_bf16=true")


class Killed(Exception):
    """Exception in place of the end of the process."""


@pytest.mark.parametrize(
    ("fatal_call", "tune"),
    [
        *(pytest.param(call, "[adapters, head]", marks=pytest.mark.slow) for call in (1, 2)),
        (3, "[adapters, head]"),
        (3, "[{name: lora, towers: [image, text]}, layernorm]"),
    ],
)
def test_resume_after_kill_is_equal(world: Path, tmp_path: Path, monkeypatch, fatal_call: int, tune: str) -> None:
    extra = (
        f"--model.tune={tune}",
        "--training.ema_decay=0.9",
        "--training.save_steps=1",
        "--training.mixup=0.8",
        "--data.augment.color_jitter=0.3",
        "--model.pooling=mit",
    )
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(parse(world, whole, *extra), whole)
    config, calls = parse(world, broken, *extra), 0

    from clipvid.training.objectives import Classification

    original = Classification.__call__

    def die(self, model, batch, epoch):
        nonlocal calls
        calls += 1
        if calls > fatal_call:
            raise Killed
        return original(self, model, batch, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(Classification, "__call__", die)
        with pytest.raises(Killed):
            run(config, broken)
    assert not (broken / "metrics.json").exists()
    run(config, broken)
    names = sorted(
        path.relative_to(whole) for pattern in ("*", "lora/*") for path in whole.glob(f"{pattern}.safetensors")
    )
    assert len(names) == 1 + ("lora" in tune)
    for expected, resumed in ((load_file(whole / name), load_file(broken / name)) for name in names):
        assert expected.keys() == resumed.keys()
        assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    assert (whole / "predictions.json").read_text() == (broken / "predictions.json").read_text()


def test_accumulated_steps_equal_one_large_step(world: Path, tmp_path: Path) -> None:
    eps = "--optim.eps=0.001"  # otherwise Adam turns rounding errors of tiny gradients into full steps
    run(parse(world, tmp_path / "one", eps), tmp_path / "one")
    small = ("--training.per_device_train_batch_size=2", "--training.gradient_accumulation_steps=4")
    run(parse(world, tmp_path / "four", eps, *small), tmp_path / "four")
    one, four = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "four"))
    for name in one:
        torch.testing.assert_close(four[name], one[name], atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_two_processes_train_and_evaluate_like_one(world: Path, tmp_path: Path) -> None:
    run(parse(world, tmp_path / "one"), tmp_path / "one")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--standalone"]
    half = arguments(world, tmp_path / "two", "--training.per_device_train_batch_size=4")
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(
        [*launch, str(ROOT / "scripts/finetune.py"), *half],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    rows = json.loads((tmp_path / "two/predictions.json").read_text())
    assert rows["indices"] == list(range(12))
    expected = json.loads((tmp_path / "one/predictions.json").read_text())
    torch.testing.assert_close(torch.tensor(rows["scores"]), torch.tensor(expected["scores"]), atol=2e-3, rtol=0)
    assert two["top1"] == one["top1"]


def test_leave_one_group_out_holds_out_every_video_once(world: Path, tmp_path: Path, capsys) -> None:
    folds = ("--data.protocol=leave_one_group_out", "--data.group_pattern=(train|val)/", "--training.epochs=1")
    command.main(arguments(world, tmp_path, *folds))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["top1"]["count"] == 32
    assert sorted(path.name for path in tmp_path.glob("fold_*")) == ["fold_train", "fold_val"]
    pooled = json.loads((tmp_path / "predictions.json").read_text())
    assert pooled["indices"] == list(range(32))
    lists = [(world / f"{split}.csv").read_text().splitlines()[1:] for split in ("train", "val")]
    assert pooled["labels"] == [int(line.rsplit(",", 1)[1]) for lines in lists for line in lines]
    (tmp_path / "metrics.json").unlink()
    capsys.readouterr()
    command.main(arguments(world, tmp_path, *folds))
    assert capsys.readouterr().out.count("already finished") == 2


def test_parameter_groups_are_complete() -> None:
    model = clipvid.create_model("tiny", adapter="ila", hidden=16, pooling="mit", num_frames=4)
    groups = [
        ParameterGroup("encoder.layers.*.adapters.ila.message_*", 0.5, 0.1),
        ParameterGroup("pooling.*", 0.25, 0.2),
    ]
    optimizer = build_optimizer(model, OptimConfig(lr=0.125, weight_decay=0.3, groups=groups))
    place = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {id(p) for p in trained.values()} == place.keys()
    assert place[id(trained["encoder.layers.1.adapters.ila.message_fc.weight"])] == (0.5, 0.1)
    assert place[id(trained["encoder.layers.1.adapters.ila.message_fc.bias"])] == (0.5, 0.0)
    assert place[id(trained["pooling.position"])] == (0.25, 0.2)
    assert place[id(trained["encoder.layers.0.adapters.ila.temporal_skip_fc.weight"])] == (0.125, 0.3)
    with pytest.raises(ValueError, match=r"no trained parameter matches.*mesage"):
        build_optimizer(model, OptimConfig(groups=[ParameterGroup("*mesage*", 0.1, 0.1)]))


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to train"):
        build_optimizer(clipvid.create_model("tiny", adapter="none"), OptimConfig())


def test_the_schedule_warms_up_and_decays() -> None:
    model = clipvid.create_model("tiny", adapter="ila", hidden=16)
    config = OptimConfig(lr=1.0, warmup_ratio=0.2)
    optimizer = build_optimizer(model, config)
    scheduler = build_scheduler(optimizer, config, 10)
    rates = []
    for _ in range(10):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates[:3] == [0.0, 0.5, 1.0]
    assert all(later < earlier for earlier, later in pairwise(rates[2:]))


def test_random_weights_require_explicit_option(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.pretrained is missing for ViT-B-32"):
        run(parse(world, tmp_path, "--model.backbone=ViT-B-32"), tmp_path)


@pytest.mark.parametrize("floor", [0.0, 8e-8])
def test_timm_cosine_equals_timm_for_every_group(floor):
    """The cosine runs beneath the warm-up, and all groups end at the same floor."""
    scheduler_class = pytest.importorskip("timm.scheduler").CosineLRScheduler
    rates, steps, warmup = [5e-4, 8e-5], 40, 4
    groups = [[{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": lr} for lr in rates] for _ in range(2)]
    ours, theirs = (torch.optim.SGD(each) for each in groups)
    config = OptimConfig(lr=5e-4, lr_scheduler_type="timm_cosine", warmup_ratio=warmup / steps, min_lr=floor)
    schedule = build_scheduler(ours, config, steps)
    reference = scheduler_class(
        theirs, t_initial=steps, lr_min=floor, warmup_lr_init=0, warmup_t=warmup, cycle_limit=1, t_in_epochs=False
    )
    for step in range(steps + 1):
        reference.step_update(step)
        expected = [group["lr"] for group in theirs.param_groups]
        assert schedule.get_last_lr() == pytest.approx(expected, rel=1e-9, abs=1e-15), step
        ours.step()
        schedule.step()
    assert schedule.get_last_lr() == pytest.approx([floor] * 2, rel=1e-9)


def test_cosine_with_a_floor_ends_there_and_is_transformers_without():
    def rates(**options):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.01)
        scheduler = build_scheduler(optimizer, OptimConfig(lr=0.01, warmup_ratio=0.2, **options), 20)
        seen = []
        for _ in range(21):
            seen.append(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
        return torch.tensor(seen, dtype=torch.float64)

    plain, floored = rates(), rates(min_lr=0.001)
    torch.testing.assert_close(floored[4:], 0.001 + plain[4:] * 0.9)
    assert torch.equal(floored[:4], plain[:4])


def test_floor_of_another_schedule_is_refused():
    with pytest.raises(ValueError, match="min_lr=1e-06 needs lr_scheduler_type cosine or timm_cosine, got linear"):
        OptimConfig(lr_scheduler_type="linear", min_lr=1e-6)


@pytest.mark.parametrize(
    ("head", "options", "rate"),
    [
        ("linear", {}, 0.01),
        ("cosine", {"head_lr": 0.02}, 0.02),
        ("class_token", {"head_lr": None}, 1e-4),
        ({"name": "text", "prompt_layers": 1}, {}, 1e-4),
        ("linear", {"groups": [ParameterGroup("head.*", 0.3, 0.0)]}, 0.3),
    ],
)
def test_heads_without_text_have_their_own_learning_rate(make_model, head, options, rate) -> None:
    model = make_model({"name": "gta", "layers": [-1]}, ["a", "b"], head=head)
    optimizer = build_optimizer(model, OptimConfig(lr=1e-4, **options))
    rates = {id(value): group["lr"] for group in optimizer.param_groups for value in group["params"]}
    trained = {name: rates[id(value)] for name, value in model.named_parameters() if value.requires_grad}
    assert {value for name, value in trained.items() if name.startswith("head.")} == {rate}
    assert {value for name, value in trained.items() if not name.startswith("head.")} == {1e-4}


def test_documented_rates_of_an_adapter_and_its_blocks(make_model) -> None:
    page = (REPOSITORY / "docs/tuning.md").read_text(encoding="utf-8").split("### The last blocks, too")[1]
    config = read_config(FinetuneConfig, yaml.safe_load(page.split("```yaml")[1].split("```")[0]))
    model = make_model(config.model.adapter, tune=config.model.tune)
    groups = build_optimizer(model, config.optim).param_groups
    rates = {id(weight): group["lr"] for group in groups for weight in group["params"]}
    trained = {name: rates[id(weight)] for name, weight in model.named_parameters() if id(weight) in rates}
    assert {rate for name, rate in trained.items() if ".block." in name} == {0.0001}
    assert {rate for name, rate in trained.items() if ".adapters." in name} == {0.0005}
