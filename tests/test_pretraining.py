"""Training without labels: losses and draws of the terms, the run from videos to a model folder, and its use.

Runs are killed and resumed, on one process and on two. A fine-tuning run starts from the result.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import random_frames, shake
from processes import all_end_well, together
from safetensors.torch import load_file

import clipvid
from clipvid import InputError
from clipvid.commands import finetune as finetune_command
from clipvid.data.leaks import check_splits
from clipvid.data.manifest import ManifestError
from clipvid.data.sampling import keyed_generator
from clipvid.data.synthetic.world import WorldConfig, build_world
from clipvid.hub.continuing import start_from
from clipvid.hub.folder import weights_hash
from clipvid.runs.config_files import parse_config
from clipvid.training import pretrain as command
from clipvid.training.build import build_accelerator
from clipvid.training.pretext_tasks import resolve_pretext_tasks, tube_mask
from clipvid.training.self_supervised import (
    SelfSupervisedModel,
    SelfSupervisedObjective,
    collapse_metrics,
    effective_rank,
)
from clipvid.training.time_tasks import DirectionConfig, OrderConfig, draw_order, draw_speed, draw_swaps, seen_when
from clipvid.training.tracking_task import TrackingConfig, tracked_offsets

WORLD = WorldConfig(
    objects=("ball", "star"), motions=("horizontal",), num_frames=8, image_size=48,
    train_per_class=5, val_per_class=2, test_per_class=1,
)  # fmt: skip
ALL = ["masked", "order", "distillation"]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return build_world(WORLD, tmp_path_factory.mktemp("world"), progress=False)


def arguments(world: Path, output: Path, *more: str) -> list[str]:
    """Return arguments of a run with 2 epochs of 2 steps of 8 clips."""
    fixed = {
        "data.root": world,
        "output_dir": output,
        "model.backbone": "tiny",
        "model.adapter": "{name: ila, hidden: 16, norm: frozen_batch}",
        "model.num_frames": 4,
        "training.epochs": 2,
        "training.per_device_train_batch_size": 8,
        "training.report_to": "none",
        "data.num_workers": 0,
        "training.save_steps": 1,
        "training.save_total_limit": 4,
        "optim.lr": 0.01,
        "optim.eps": 0.001,  # otherwise Adam turns rounding errors of tiny gradients into full steps
    }
    return [f"--{key}={value}" for key, value in fixed.items()] + list(more)


def run(args: list[str]) -> dict:
    config = parse_config(command.PretrainConfig, args, "test")
    return command.pretrain(config, build_accelerator(config.training, config.output_dir))


@pytest.fixture(scope="module")
def pretrained(world, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("pretrained")
    run(arguments(world, output))
    return output


OF_TIME = ["neighbors", "speed", "direction", "tracking"]
ST_ADAPTER = {"name": "st_adapter", "place": "before_attention"}  # the class token reads it in every block


def pretext_model(make_model, adapter=ST_ADAPTER, objectives=ALL, num_frames=4) -> SelfSupervisedModel:
    model = make_model(adapter, num_frames=num_frames)
    torch.manual_seed(0)
    return SelfSupervisedModel(model, resolve_pretext_tasks(objectives)).train()


def batch(size=4, num_frames=4) -> dict:
    return keyed(random_frames(size, num_frames))


def keyed(frames: torch.Tensor, epoch: int = 0) -> dict:
    """Return the clips of videos 0, 1, ... in an epoch."""
    index = torch.arange(len(frames))
    return {"frames": frames, "index": index, "epoch": torch.full_like(index, epoch)}


@pytest.mark.parametrize(
    "objectives",
    [["masked"], ["order"], ["order", "distillation"], *([name] for name in OF_TIME), ALL, [*ALL, *OF_TIME]],
)
def test_gradients_reach_adapters_and_heads_only(make_model, objectives) -> None:
    learner = pretext_model(make_model, objectives=objectives)
    for adapter in learner.video_model.encoder.adapters():
        shake(adapter)
    loss, parts = SelfSupervisedObjective(0, tuple(objectives))(learner, batch(), 0)
    loss.backward()
    trained = learner.trained_state()
    reached = {name for name, p in learner.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    parameters = {name for name, p in learner.named_parameters(remove_duplicate=False) if p.requires_grad}
    assert reached == parameters <= set(trained)
    assert any(name.startswith("terms.") for name in reached)
    assert any(".adapters." in name for name in reached)
    assert parts["loss"].item() == pytest.approx(loss.item())
    assert {"feature_std", "effective_rank", "clip_effective_rank"} <= parts.keys()


def test_weights_scale_terms(make_model) -> None:
    light, heavy = (
        pretext_model(make_model, objectives=[{"name": "order", "weight": weight}, "distillation"])
        for weight in (1.0, 3.0)
    )
    objective = SelfSupervisedObjective(0, ("order", "distillation"))
    (_, one), (_, three) = objective(light, batch(), 0), objective(heavy, batch(), 0)
    assert three["order"].item() == pytest.approx(3 * one["order"].item())
    assert three["distillation"].item() == pytest.approx(one["distillation"].item(), abs=1e-6)


def test_a_fresh_student_is_its_teacher(make_model) -> None:
    learner = pretext_model(make_model, adapter="ila", objectives=["order", "distillation"])
    _, parts = SelfSupervisedObjective(0, ("order", "distillation"))(learner, batch(), 0)
    assert parts["distillation"].item() == pytest.approx(0, abs=1e-6)
    assert parts["effective_rank"].item() == pytest.approx(parts["clip_effective_rank"].item(), rel=1e-5)


def test_draws_depend_on_their_key_only(make_model) -> None:
    def parts(objectives, seed=0, epoch=0, order=(0, 1, 2, 3)):
        learner = pretext_model(make_model, objectives=objectives)
        for adapter in learner.video_model.encoder.adapters():
            shake(adapter)
        whole = keyed(random_frames(4, 4), epoch)
        shown = {name: value[list(order)] for name, value in whole.items()}
        return SelfSupervisedObjective(seed, tuple(objectives))(learner, shown, epoch)[1]["masked_patches"].item()

    first = parts(["masked"])
    assert parts(["masked"], order=(2, 0, 3, 1)) == pytest.approx(first, abs=1e-6)
    assert parts(["masked"], epoch=1) != pytest.approx(first, abs=1e-6)
    assert parts(["masked"], seed=1) != pytest.approx(first, abs=1e-6)


@pytest.mark.parametrize("ratio", [0.01, 0.5, 0.99])
def test_masks_are_gray_tubes(make_model, ratio) -> None:
    learner = pretext_model(make_model, objectives=[{"name": "masked", "ratio": ratio}])
    frames = random_frames(3, 4) + 10
    changed, masks = learner.terms["masked"].change(frames, [keyed_generator(1, i) for i in range(3)])
    assert masks.sum(dim=(1, 2)).tolist() == [min(max(round(ratio * 16), 1), 15)] * 3
    grey = (changed == 0).all(dim=2)  # [B, T, S, S]
    for clip in range(3):
        pixels = masks[clip].repeat_interleave(16, 0).repeat_interleave(16, 1)
        assert all(torch.equal(grey[clip, t], pixels) for t in range(4))
        assert torch.equal(changed[clip][:, :, ~pixels], frames[clip][:, :, ~pixels])
    assert torch.equal(tube_mask((4, 4), ratio, keyed_generator(1, 0)), masks[0])


def test_drawn_orders() -> None:
    orders = [draw_order(8, 4, keyed_generator(0, i)) for i in range(400)]
    kinds = [
        "forward" if torch.equal(o, torch.arange(8)) else "reversed" if o[0] > o[1] else "shuffled" for o in orders
    ]
    shares = {kind: kinds.count(kind) / 400 for kind in ("forward", "reversed", "shuffled")}
    assert shares["forward"] == pytest.approx(0.5, abs=0.08)
    assert shares["reversed"] == pytest.approx(0.25, abs=0.07)
    for order in orders:
        assert order.sort().values.tolist() == list(range(8))
        pairs = (order // 2).view(4, 2)
        assert (pairs[:, 0] == pairs[:, 1]).all()
        assert seen_when(order[None], 4)[0].tolist() == pairs[:, 0].argsort().tolist()
    assert seen_when(torch.arange(7).flip(0)[None], 3).tolist() == [[2, 1, 0]]


@pytest.mark.parametrize("num_frames", [4, 7, 8])
def test_drawn_swaps(num_frames: int) -> None:
    draws = [draw_swaps(num_frames, keyed_generator(0, i)) for i in range(200)]
    for order, swapped in draws:
        expected = list(range(num_frames))
        for pair, other in enumerate(swapped.tolist()):
            if other:
                expected[2 * pair : 2 * pair + 2] = 2 * pair + 1, 2 * pair
        assert order.tolist() == expected
    assert torch.stack([swapped for _, swapped in draws]).float().mean().item() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("num_frames", [4, 7, 8])
def test_drawn_speeds(num_frames: int) -> None:
    draws = [draw_speed(num_frames, keyed_generator(0, i)) for i in range(200)]
    starts = {True: set(), False: set()}
    for order, fast in draws:
        assert len(order) == num_frames // 2
        assert order.diff().tolist() == [2 if fast else 1] * (num_frames // 2 - 1)
        assert 0 <= order[0] <= order[-1] < num_frames
        starts[bool(fast)].add(int(order[0]))
    half = num_frames // 2
    assert starts == {True: set(range(num_frames - 2 * (half - 1))), False: set(range(num_frames - half + 1))}
    assert sum(bool(fast) for _, fast in draws) / 200 == pytest.approx(0.5, abs=0.1)


def test_clips_of_the_contrast_are_shifted_and_reversed(make_model) -> None:
    learner = pretext_model(make_model, objectives=["direction"], num_frames=8)
    frames = random_frames(2, 8)
    changed, _ = learner.terms["direction"].change(frames, [])
    for part, expected in zip(
        changed.chunk(3), ([0, 1, 2, 3, 4, 5], [2, 3, 4, 5, 6, 7], [5, 4, 3, 2, 1, 0]), strict=True
    ):
        assert torch.equal(part, frames[:, expected])


@pytest.mark.parametrize(
    ("task", "num_frames", "steps", "bars"),
    [
        ("order", 4, 60, {"arrow_accuracy": 0.8, "order_accuracy": 0.5}),
        # depends on the direction of the others
        pytest.param("neighbors", 8, 300, {"neighbors_accuracy": 0.8}, marks=pytest.mark.slow),
        ("speed", 4, 60, {"speed_accuracy": 0.8}),
        ("direction", 4, 60, {"direction_accuracy": 0.8}),
    ],
)
def test_time_is_learned_on_directed_clips(make_model, task, num_frames, steps, bars) -> None:
    """Clips get lighter or darker. Their order can be recognized, and is after a few steps."""
    learner = pretext_model(make_model, objectives=[task], num_frames=num_frames)
    ramp = torch.linspace(-2, 2, num_frames)[None, :, None, None, None]
    sign = torch.tensor([1.0, -1.0]).repeat(8)[:, None, None, None, None]
    frames = (ramp * sign).expand(-1, -1, 3, 64, 64) + 0.1 * random_frames(16, num_frames)
    optimizer = torch.optim.AdamW([p for p in learner.parameters() if p.requires_grad], lr=3e-3)
    objective, accuracies = SelfSupervisedObjective(0, (task,)), []
    for step in range(steps):
        optimizer.zero_grad()
        loss, parts = objective(learner, keyed(frames, step), step)
        loss.backward()
        optimizer.step()
        accuracies.append([parts[name].item() for name in bars])
    for accuracy, bar in zip(torch.tensor(accuracies[-10:]).mean(dim=0).tolist(), bars.values(), strict=True):
        assert accuracy > bar


@pytest.mark.parametrize(("grid", "step"), [((6, 5), (1, -2)), ((6, 5), (0, 0)), ((4, 4), (-1, 0)), ((1, 6), (0, 2))])
def test_patches_are_tracked(grid, step) -> None:
    frame = torch.randn(1, *grid, 32, generator=torch.Generator().manual_seed(0))
    clip = torch.stack([frame.roll((t * step[0], t * step[1]), dims=(1, 2)) for t in range(3)], dim=1)
    shares = tracked_offsets(clip.flatten(2, 3), grid, reach=2, temperature=0.01)
    assert shares.shape == (1, 2, 25)
    torch.testing.assert_close(shares.sum(dim=-1), torch.ones(1, 2))
    stayed = (grid[0] - abs(step[0])) * (grid[1] - abs(step[1])) / (grid[0] * grid[1])
    assert (shares[0, :, 5 * (step[0] + 2) + step[1] + 2] >= stayed - 1e-3).all()


def test_tracking_of_half_precision_is_finite() -> None:
    patches = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert tracked_offsets(patches, (3, 3), reach=4, temperature=0.01).isfinite().all()


def test_motion_is_learned_from_other_frames(make_model) -> None:
    """Clips move up or down. An adapter learns to predict it, and a head on single frames cannot."""
    picture = 2 * random_frames(8, 1)[:, 0].repeat(2, 1, 1, 1)
    steps = torch.tensor([16, -16]).repeat(8).tolist()
    frames = torch.stack(
        [torch.stack([one.roll(t * step, dims=1) for t in range(4)]) for one, step in zip(picture, steps, strict=True)]
    )
    explained = {}
    for name, adapter in (("adapter", ST_ADAPTER), ("none", "none")):
        learner = pretext_model(make_model, adapter=adapter, objectives=["tracking"])
        optimizer = torch.optim.AdamW([p for p in learner.parameters() if p.requires_grad], lr=3e-3)
        for step in range(60):
            optimizer.zero_grad()
            loss, parts = SelfSupervisedObjective(0, ("tracking",))(learner, keyed(frames, step), step)
            loss.backward()
            optimizer.step()
        explained[name] = parts["tracking_explained"].item()
    assert explained["adapter"] > 0.7
    assert explained["none"] < 0.4


def test_collapse_metrics_detect_collapse() -> None:
    features = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    apart, fallen = collapse_metrics(features), collapse_metrics(features[:1] + 1e-4 * features)
    assert apart["feature_std"].item() == pytest.approx(1, abs=0.05)
    assert fallen["feature_std"].item() < 1e-3
    assert fallen["effective_rank"].item() == pytest.approx(1, abs=0.02)
    assert effective_rank(torch.eye(5)).item() == pytest.approx(5)
    entry = {
        f"{prefix}{name}": value.item()
        for prefix, actual in (("", fallen), ("clip_", apart))
        for name, value in actual.items()
    }
    assert "features are collapsing: feature_std is" in command.collapse([entry, {"val_top1": 0.1}])
    assert command.collapse([dict.fromkeys(entry, 1.0)]) is None


def test_invalid_objectives_are_refused(make_model) -> None:
    with pytest.raises(ValueError, match="at least one besides distillation"):
        resolve_pretext_tasks(["distillation"])
    with pytest.raises(ValueError, match=r"unknown objective 'ordr'.*did you mean 'order'"):
        resolve_pretext_tasks(["ordr"])
    with pytest.raises(ValueError, match="4 segments need as many frames, got 3"):
        pretext_model(make_model, num_frames=3)
    with pytest.raises(ValueError, match="segments=1"):
        OrderConfig(segments=1)
    with pytest.raises(ValueError, match="temperature=0"):
        DirectionConfig(temperature=0)
    with pytest.raises(ValueError, match="temperature=-1"):
        TrackingConfig(temperature=-1)
    with pytest.raises(ValueError, match="reach=0"):
        TrackingConfig(reach=0)
    for task in OF_TIME:
        least = 2 if task == "tracking" else 4
        with pytest.raises(ValueError, match=f"{task}: expected at least {least} frames.*got {least - 1}"):
            pretext_model(make_model, objectives=[task], num_frames=least - 1)
    with pytest.raises(ValueError, match="only adapters and pooling can be trained, but the model trains"):
        SelfSupervisedModel(make_model("st_adapter", tune=["adapters", "layernorm"]), resolve_pretext_tasks(["masked"]))


def test_masked_clips_do_not_update_statistics(make_model) -> None:
    """With `masked` and `order`, the stored statistics are those of `order` alone, which shows whole clips."""
    ila = {"name": "ila", "hidden": 16, "norm": "batch"}
    moved = []
    for objectives in (["order"], ["order", "masked"]):
        learner = pretext_model(make_model, ila, objectives)
        SelfSupervisedObjective(0, tuple(objectives))(learner, batch(), 0)
        moved.append({name: value for name, value in learner.state_dict().items() if "running" in name})
    assert moved[0].keys() == moved[1].keys() != set()
    assert all(torch.equal(moved[0][name], moved[1][name]) for name in moved[0])


def test_clips_of_one_video_get_different_draws(make_model) -> None:
    learner = pretext_model(make_model, objectives=["masked"])
    seen = []
    change = learner.terms["masked"].change
    learner.terms["masked"].change = lambda frames, generators: (
        seen.append(actual := change(frames, generators)) or actual
    )
    repeated = {"frames": random_frames(2, 4), "index": torch.tensor([5, 5]), "epoch": torch.tensor([2, 3])}
    SelfSupervisedObjective(0, ("masked",))(learner, repeated, 1)
    first, second = seen[0][1]
    assert not torch.equal(first, second)


def test_nan_features_do_not_raise(make_model) -> None:
    """The loop skips a broken step. The figures for the log must not raise an error."""
    broken = torch.tensor([[1.0, float("nan")], [0.5, 1.0]])
    assert all(value.isnan() for value in collapse_metrics(broken).values())


def test_run_writes_model_folder_without_heads(pretrained: Path, world: Path, capsys) -> None:
    metrics = json.loads((pretrained / "metrics.json").read_text())
    assert metrics["object"]["count"] == metrics["before"]["object"]["count"] == 8
    model = clipvid.from_pretrained(pretrained)
    assert model.labels[0] == "ball moving left"
    assert all(".adapters.ila." in name for name in load_file(pretrained / "model.safetensors"))
    newest = max((pretrained / "checkpoints").glob("step_*"))
    assert any(name.startswith("terms.order.when") for name in load_file(newest / "model.safetensors"))
    history = json.loads((pretrained / "history.json").read_text())
    assert [entry["val_object"] for entry in history if "val_object" in entry][-1] == metrics["object"]["value"]
    assert {"order", "arrow_accuracy", "masked_patches", "masked_frames", "distillation", "effective_rank"} <= history[
        0
    ].keys()
    run(arguments(world, pretrained))
    assert "already finished" in capsys.readouterr().out


class Killed(Exception):
    """Exception in place of the end of the process."""


@pytest.mark.parametrize("fatal_call", [1, 3])
def test_resume_after_kill_is_equal(
    pretrained: Path, world: Path, tmp_path: Path, monkeypatch, fatal_call: int
) -> None:
    calls, original = 0, SelfSupervisedObjective.__call__

    def die(self, model, batch, epoch):
        nonlocal calls
        calls += 1
        if calls > fatal_call:
            raise Killed
        return original(self, model, batch, epoch)

    args = arguments(world, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(SelfSupervisedObjective, "__call__", die)
        with pytest.raises(Killed):
            run(args)
    run(args)
    for name in ("model.safetensors", "checkpoints/step_00000004/model.safetensors"):
        expected, resumed = load_file(pretrained / name), load_file(tmp_path / name)
        assert expected.keys() == resumed.keys()
        assert all(torch.equal(expected[key], resumed[key]) for key in expected)
    assert (pretrained / "predictions.json").read_text() == (tmp_path / "predictions.json").read_text()


def _pretrain(args: list[str]) -> None:
    from clipvid.commands import run

    run("pretrain", args)


@pytest.mark.slow
def test_two_processes_equal_one(pretrained: Path, world: Path, tmp_path: Path) -> None:
    half = arguments(world, tmp_path / "two", "--training.per_device_train_batch_size=4")
    all_end_well(together(2, tmp_path, _pretrain, half))
    assert json.loads((tmp_path / "two/metrics.json").read_text())["processes"] == 2
    first, second = (
        load_file(path / "checkpoints/step_00000002/model.safetensors") for path in (pretrained, tmp_path / "two")
    )
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(second[name], first[name], atol=1e-4, rtol=0)


def test_stored_features_give_the_same_weights(world: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CLIPVID_CACHE", str(tmp_path / "cache"))
    options = ("--model.adapter={name: ila, hidden: 16, norm: group, layers: [-1]}", "--training.cache_views=1")
    options += (f"--objectives=[order, {', '.join(OF_TIME)}, distillation]",)
    for name, choice in (("without", "off"), ("first", "auto"), ("second", "auto")):
        run(arguments(world, tmp_path / name, *options, f"--training.cache_features={choice}"))
    weights = {name: load_file(tmp_path / name / "model.safetensors") for name in ("without", "first", "second")}
    torch.testing.assert_close(weights["first"], weights["without"])
    torch.testing.assert_close(weights["second"], weights["first"], atol=0, rtol=0)
    records = [json.loads((tmp_path / name / "run.json").read_text()) for name in weights]
    used = [record["sessions"][0].get("features") or record.get("features") for record in records]
    assert used[0] is None
    assert [(each["computed"], each["reused"]) for each in used[1:]] == [(20, 12), (0, 32)]


def test_masked_clips_have_no_stored_features(world: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cache_features=1: the objective masked changes pixels"):
        parse_config(command.PretrainConfig, arguments(world, tmp_path, "--training.cache_features=1.0"), "test")


def test_training_on_several_lists(world: Path, tmp_path: Path) -> None:
    other = shutil.copytree(world, tmp_path / "other")
    elsewhere = json.dumps([{"root": str(other), "videos": "val.csv", "classes": "classes.csv"}])
    args = arguments(world, tmp_path / "run", f"--also={elsewhere}")
    actual, _ = command.load_videos(parse_config(command.PretrainConfig, args, "test"))
    assert len(actual) == 20 + 8
    assert {sample.label for sample in actual.samples} == {0}
    assert Path(actual.video(20)) == other / "val/ball_moving_left/0000.mp4"
    assert Path(actual.video(20)).is_file()
    leaking = json.dumps([{"root": str(world), "videos": "val.csv", "classes": "classes.csv"}])
    with pytest.raises(ManifestError, match="8 videos are in both lists"):
        check_splits(
            *command.load_videos(parse_config(command.PretrainConfig, [*args[:-1], f"--also={leaking}"], "test"))
        )
    with pytest.raises(ManifestError, match="8 videos are in both lists"):
        check_splits(
            *command.load_videos(parse_config(command.PretrainConfig, [*args, "--data.train=val.csv"], "test"))
        )


@pytest.mark.slow
def test_frozen_bf16_folder_loads(world: Path, tmp_path: Path) -> None:
    lowered = ("--training.mixed_precision=bf16", "--training.frozen_bf16=true", "--training.epochs=1")
    all_end_well(together(1, tmp_path, _pretrain, arguments(world, tmp_path, *lowered, "--data.augment.flip=true")))
    clipvid.from_pretrained(tmp_path)


def test_run_on_other_inputs_is_refused(pretrained: Path, world: Path, tmp_path: Path) -> None:
    start, videos = shutil.copytree(pretrained, tmp_path / "start"), shutil.copytree(world, tmp_path / "world")
    args = arguments(videos, tmp_path / "run", f"--model.init_from={start}", "--training.epochs=1")
    finetune_command.main(args)
    (start / "model.safetensors").write_bytes((tmp_path / "run/model.safetensors").read_bytes())
    with pytest.raises(FileExistsError, match=r"contains a run on another model\.init_from"):
        finetune_command.main(args)
    lines = (videos / "val.csv").read_text().splitlines()
    (videos / "val.csv").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(FileExistsError, match=r"another val and another model\.init_from"):
        finetune_command.main(args)


def test_fine_tuning_starts_from_the_adapters(pretrained: Path, world: Path, tmp_path: Path) -> None:
    fixed = arguments(world, tmp_path, f"--model.init_from={pretrained}", "--optim.lr=1e-12", "--training.epochs=1")
    finetune_command.main(fixed)
    started, tuned = load_file(pretrained / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert started.keys() == tuned.keys()
    for name in started:
        torch.testing.assert_close(tuned[name], started[name], atol=1e-6, rtol=0)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["config"]["model"]["init_from"] == str(pretrained)
    assert record["manifests"]["model.init_from"] == weights_hash(pretrained)
    assert "init_from" not in json.loads((tmp_path / "config.json").read_text())["model"]
    shutil.rmtree(tmp_path / "checkpoints")
    clipvid.from_pretrained(tmp_path)


def test_start_from_other_adapter_or_backbone_is_refused(pretrained: Path, make_model, clip_folder) -> None:
    options = {"num_frames": 4, "hidden": 16, "norm": "frozen_batch"}
    same = clipvid.create_model("tiny", adapter="ila", tune=["full", "adapters"], **options)
    start_from(same, pretrained)
    assert all(torch.equal(same.temporal_state()[k], v) for k, v in load_file(pretrained / "model.safetensors").items())
    assert all(p.requires_grad for p in same.encoder.tower.parameters())
    with pytest.raises(
        ValueError, match=r"init_from .* do not fit .* is \(16,\), expected \(32,\).*Use its model.adapter"
    ):
        start_from(clipvid.create_model("tiny", adapter="ila", **(options | {"hidden": 32})), pretrained)
    with pytest.raises(ValueError, match=r"missing encoder\.layers\.0\.adapters\.gta"):
        start_from(clipvid.create_model("tiny", adapter="gta", num_frames=4), pretrained)
    with pytest.raises(ValueError, match="is made from another backbone"):
        start_from(make_model({"name": "ila", "hidden": 16, "norm": "frozen_batch"}, num_frames=4), pretrained)
