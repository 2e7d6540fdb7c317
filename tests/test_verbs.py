"""Options and output folders of the training verbs: refusals, and files written before them."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, get_args, get_type_hints

import pytest
import yaml

import clipvid
from clipvid.commands import run
from clipvid.data.synthetic.world import WorldConfig, build_world
from clipvid.runs.config_files import config_record, parse_config
from clipvid.training.config import FinetuneConfig, RunConfig
from clipvid.training.pretrain_config import PretrainClipConfig, PretrainConfig

CONFIGS: dict[str, type[RunConfig]] = {
    "finetune": FinetuneConfig,
    "pretrain": PretrainConfig,
    "pretrain-clip": PretrainClipConfig,
}
WORLD = WorldConfig(
    objects=("ball", "star"), motions=("horizontal",), num_frames=4, image_size=32,
    train_per_class=2, val_per_class=1, test_per_class=0,
)  # fmt: skip
VIDEO = {
    "model.backbone": "tiny",
    "model.adapter": "{name: ila, hidden: 16}",
    "model.num_frames": 2,
    "training.per_device_train_batch_size": 4,
    "data.num_workers": 0,
}
STILLS = {
    "model.backbone": "tiny",
    "model.pretrained": "random",
    "model.adapter": "none",
    "model.num_frames": 1,
    "model.tune": "[full, text]",
    "stills.train": 8,
    "stills.val": 4,
    "training.per_device_train_batch_size": 4,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return build_world(WORLD, tmp_path_factory.mktemp("world"), progress=False)


@pytest.fixture
def words(world: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Return options of a run of one epoch of one or two steps in `tmp_path`/run."""

    def build(verb: str, *more: str) -> list[str]:
        common = {"output_dir": tmp_path / "run", "training.epochs": 1, "training.report_to": "none"}
        own = STILLS if verb == "pretrain-clip" else VIDEO | {"data.root": world}
        more_of = {"pretrain": {"objectives": "[masked, distillation]"}, "finetune": {"selection.folds": 0}}
        own = own | more_of.get(verb, {})
        return [*(f"--{key}={value}" for key, value in (common | own).items()), *more]

    return build


def refusal(capsys, verb: str, args: list[str]) -> str:
    """Return the one line on which a verb refuses its options."""
    with pytest.raises(SystemExit) as end:
        run(verb, args)
    lines = capsys.readouterr().err.strip().splitlines()
    assert end.value.code == 1
    assert len(lines) == 1, lines
    return lines[0]


# The metric that chooses the best weights


@pytest.mark.parametrize(
    ("verb", "metric", "names"),
    [
        ("finetune", "val_tpo1", r"did you mean 'val_top1'"),
        ("finetune", "val_object", r"measures val_top1"),
        ("pretrain", "val_objcet", r"did you mean 'val_object'"),
        ("pretrain-clip", "val_objet", r"did you mean 'val_object'"),
        ("pretrain-clip", "val_top1", r"measures val_object"),
    ],
)
def test_unknown_metric_is_refused_before_anything_is_written(words, capsys, tmp_path, verb, metric, names) -> None:
    best = ["--training.load_best_model_at_end=true", f"--training.metric_for_best_model={metric}"]
    line = refusal(capsys, verb, words(verb, *best))
    assert f"training.metric_for_best_model={metric!r}" in line
    assert names in line
    assert not (tmp_path / "run").exists()


def test_object_metric_needs_classes_with_objects(words, capsys, tmp_path, world) -> None:
    rows = [line.split(",")[:2] for line in (world / "classes.csv").read_text().splitlines()]
    (tmp_path / "plain.csv").write_text("".join(",".join(row) + "\n" for row in rows))
    best = ["--training.load_best_model_at_end=true", "--training.metric_for_best_model=val_object"]
    line = refusal(capsys, "pretrain", words("pretrain", *best, f"--data.classes={tmp_path / 'plain.csv'}"))
    assert "val_object" in line
    assert "val_top1" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", CONFIGS)
def test_default_metric_is_measured(verb: str, tmp_path: Path) -> None:
    best = parse_config(CONFIGS[verb], ["--training.load_best_model_at_end=true"], "test")
    assert best.training.metric_for_best_model == CONFIGS[verb].METRICS[0]
    path = tmp_path / "run.yaml"
    path.write_text("training: {load_best_model_at_end: true, epochs: 3}\n")
    assert parse_config(CONFIGS[verb], ["--config", str(path)], "test").training.epochs == 3


@pytest.mark.parametrize("verb", CONFIGS)
def test_former_default_metric_is_accepted_if_unused(verb: str) -> None:
    parse_config(CONFIGS[verb], ["--training.metric_for_best_model=val_top1"], "test")


# Every option is used or refused

CHANGED = {
    "model.init_from": "folder",
    "model.multi_label": "true",
    "training.head_epochs": 5,
    "training.class_weights": "balanced",
    "training.label_smoothing": 0.5,
    "training.mixup": 0.5,
    "training.cutmix": 0.5,
    "training.auto_find_batch_size": "true",
    "training.torch_compile": "true",
    "training.diagnose": "true",
    "optim.head_lr": 0.5,
    "training.frozen_bf16": "true",
    "training.cache_features": "off",
    "training.cache_views": 2,
    "data.balance": "true",
    "data.protocol": "leave_one_group_out",
    "data.augment.label_map_flip": "{ball moving left: ball moving right}",
    "stills.world.fps": 9,
    "stills.world.train_per_class": 1,
    "stills.world.val_per_class": 1,
    "stills.world.test_per_class": 1,
}
# All verbs read these, but only after a step without finite loss, and without a list for validation.
CONDITIONAL = {"training.max_skipped_steps", "data.val_share", "data.split_seed"}


@pytest.mark.parametrize(("verb", "option"), [(verb, option) for verb in CONFIGS for option in CONFIGS[verb].UNUSED])
def test_unused_option_is_refused(words, capsys, tmp_path, verb: str, option: str) -> None:
    more = ["--training.mixed_precision=bf16"] if option == "training.frozen_bf16" else []
    line = refusal(capsys, verb, words(verb, f"--{option}={CHANGED[option]}", *more))
    assert f"{option}=" in line
    assert f"clipvid {verb} does not use this option" in line
    assert not (tmp_path / "run").exists()


def config_classes(hint: Any) -> Iterator[type]:
    """Yield the config classes in a type, such as that of a list."""
    if dataclasses.is_dataclass(hint):
        yield hint
    for part in get_args(hint):
        yield from config_classes(part)


def options_of(kind: type, prefix: str = "") -> Iterator[tuple[str, type, str]]:
    """Yield every option below a config class: its path, its class, and its name there."""
    hints = get_type_hints(kind)
    for name in (item.name for item in dataclasses.fields(kind)):
        yield prefix + name, kind, name
        for nested in config_classes(hints[name]):
            yield from options_of(nested, f"{prefix}{name}.")


def is_use(frame: FrameType | None) -> bool:
    """Return True if clipvid reads an option there to use it, not to check, copy or record it."""
    while frame is not None and frame.f_code.co_filename == dataclasses.__file__:
        if frame.f_code.co_name == "replace":
            return False
        frame = frame.f_back
    if frame is None or not Path(frame.f_code.co_filename).is_relative_to(Path(clipvid.__file__).parent):
        return False
    checks = ("__post_init__", "_check_", "check_ranges", "config_record", "save_model")
    return not any(name in frame.f_code.co_qualname for name in checks)


def record_reads(monkeypatch, kinds: set[type]) -> set[tuple[type, str]]:
    """Return the set that gets (class, option) whenever clipvid uses an option."""
    reads: set[tuple[type, str]] = set()
    for kind in kinds:
        names = {item.name for item in dataclasses.fields(kind)}

        def read(self: Any, name: str, kind: type = kind, names: set[str] = names) -> Any:
            if name in names and is_use(sys._getframe(1)):
                reads.add((kind, name))
            return object.__getattribute__(self, name)

        monkeypatch.setattr(kind, "__getattribute__", read)
    return reads


@pytest.mark.parametrize("verb", CONFIGS)
def test_every_option_is_used_or_refused(words, world, tmp_path, monkeypatch, verb: str) -> None:
    shutil.copytree(world, tmp_path / "other")
    also = f"[{{root: {tmp_path / 'other'}, videos: train.csv, classes: classes.csv}}]"
    own = {
        "finetune": ["--hub.push_to_hub=true", "--hub.repo_id=user/name", "--selection.folds=2", "--model.head=linear"],
        "pretrain": [f"--also={also}", "--objectives=[{name: order, segments: 2}, distillation]"],
        "pretrain-clip": [f"--export_dir={tmp_path / 'export'}"],
    }
    monkeypatch.setattr("clipvid.training.finetune.check_login", lambda: None)
    monkeypatch.setattr("clipvid.training.finetune.push_to_hub", lambda *args: SimpleNamespace(url="url"))
    monkeypatch.setattr("clipvid.data.synthetic.stills.ProcessPoolExecutor", ThreadPoolExecutor)
    common = ["--training.epochs=2", "--training.load_best_model_at_end=true"]
    common += ["--optim.groups=[{match: '*.bias', lr: 0.1, weight_decay: 0.0}]"]
    options = list(options_of(CONFIGS[verb]))
    with monkeypatch.context() as patch:
        reads = record_reads(patch, {kind for _, kind, _ in options})
        run(verb, words(verb, *common, *own[verb], *world_options(verb, world)))
    assert len(reads) > 40
    unused = {path for path, kind, name in options if (kind, name) not in reads}
    assert unused <= {*CONFIGS[verb].UNUSED, *CONDITIONAL}


def world_options(verb: str, world: Path) -> list[str]:
    """Return the options that build `world` again, for verbs that support it."""
    if verb == "pretrain-clip":
        return []
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(WORLD).items()}
    return [f"--data.world={values}"]


# A run that cannot start leaves no files

FOLDS = ["--data.protocol=leave_one_group_out", r"--data.group_pattern=([0-9]+)\.mp4"]
CANNOT_START = [
    ("finetune", [], "--model.tune=[{name: partial, blocks: 99}]", "blocks=99"),
    ("finetune", [], "--model.adapter={name: gta, layers: [99]}", "99"),
    ("finetune", [], "--model.init_from=nowhere", "nowhere"),
    ("finetune", [], "--data.train=missing.csv", "missing.csv"),
    ("finetune", [], "--data.augment={flip: true, label_map_flip: {left: right}}", "left"),
    ("finetune", FOLDS, "--model.tune=[{name: partial, blocks: 99}]", "blocks=99"),
    ("pretrain", [], "--model.tune=[adapters, layernorm]", "model.tune"),
    ("pretrain", [], "--data.val=missing.csv", "missing.csv"),
    ("pretrain", [], "--also=[{root: nowhere, videos: train.csv}]", "nowhere"),
    ("pretrain-clip", [], "--model.tune=[{name: partial, blocks: 99}]", "blocks=99"),
    ("pretrain-clip", [], "--model.backbone=tinny", "tinny"),
]


@pytest.mark.parametrize(("verb", "more", "wrong", "named"), CANNOT_START)
def test_run_that_cannot_start_leaves_no_folder(words, capsys, tmp_path, verb, more, wrong, named) -> None:
    args = words(verb, "--training.report_to=tensorboard", *more)
    assert named in refusal(capsys, verb, [*args, wrong])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("verb", "more", "files"),
    [
        ("finetune", [], {"run.json"}),
        ("finetune", FOLDS, {"fold_0000/run.json", "fold_0001/run.json"}),
        ("pretrain", [], {"run.json"}),
        ("pretrain-clip", [], {"run.json"}),
    ],
)
def test_run_starts_with_the_corrected_option(words, capsys, tmp_path, verb, more, files) -> None:
    refusal(capsys, verb, words(verb, *more, "--model.tune=[{name: partial, blocks: 99}]"))
    run(verb, words(verb, *more))
    assert all((tmp_path / "run" / name).is_file() for name in {"run.yaml", "metrics.json", *files})
    capsys.readouterr()
    assert "another config (seed differ)" in refusal(capsys, verb, words(verb, *more, "--seed=5"))


@pytest.mark.parametrize("verb", CONFIGS)
def test_config_of_another_run_is_refused_early(words, capsys, tmp_path, verb) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.yaml").write_text("seed: 5\n")
    line = refusal(capsys, verb, words(verb, "--model.tune=[{name: partial, blocks: 99}]"))
    assert "contains a run with another config (" in line
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"run.yaml"}


def test_folds_record_config_first(words, tmp_path, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(
        "clipvid.training.session.recorded", lambda folder, *args: seen.append((folder.name, folder.exists())) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        run("finetune", words("finetune", *FOLDS))
    assert seen == [("fold_0000", False)]
    assert (tmp_path / "run/run.yaml").is_file()


# A finished run with more epochs


@pytest.mark.parametrize(
    ("verb", "more", "parts"),
    [
        ("finetune", [], [""]),
        ("finetune", FOLDS, ["fold_0000", "fold_0001"]),
        ("pretrain", [], [""]),
        ("pretrain-clip", [], [""]),
    ],
)
def test_finished_run_continues_with_more_epochs(words, capsys, tmp_path, verb, more, parts) -> None:
    run(verb, words(verb, *more))
    earlier = [(tmp_path / "run" / part / "history.json").read_text() for part in parts]
    capsys.readouterr()
    run(verb, words(verb, *more, "--training.epochs=2"))
    assert capsys.readouterr().out.count("finished after 1 epochs and continues to 2, with a longer") == 1
    for part, text in zip(parts, earlier, strict=True):
        history = json.loads((tmp_path / "run" / part / "history.json").read_text())
        losses = [entry["loss"] for entry in history if "loss" in entry]
        assert losses[:-1] == [entry["loss"] for entry in json.loads(text) if "loss" in entry]
        assert [entry["epoch"] for entry in history if "loss" in entry] == [0, 1]
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["config"]["training"]["epochs"] == 2
    capsys.readouterr()
    assert "(training.epochs differ)" in refusal(capsys, verb, words(verb, *more))


@pytest.mark.parametrize("verb", CONFIGS)
def test_unfinished_run_keeps_its_epochs(words, capsys, tmp_path, verb) -> None:
    (tmp_path / "run").mkdir()
    record = config_record(parse_config(CONFIGS[verb], words(verb), "test"))
    (tmp_path / "run/run.yaml").write_text(yaml.safe_dump(record))
    assert "(training.epochs differ)" in refusal(capsys, verb, words(verb, "--training.epochs=2"))
