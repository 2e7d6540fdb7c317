"""Features of the frozen part of a model: kept on disk, read back, and never those of another clip."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from processes import all_end_well, finetune_together
from safetensors import SafetensorError

from clipvid import InputError
from clipvid.commands import finetune as command
from clipvid.commands import run
from clipvid.data.config import AugmentConfig, DataConfig
from clipvid.data.dataset import VideoDataset
from clipvid.data.feature_store import FeatureStore, video_identity
from clipvid.data.lists.samples import Stored
from clipvid.data.manifest import Manifest
from clipvid.data.splits import eval_loader, load_split, train_dataset
from clipvid.data.synthetic.world import WorldConfig, build_world
from clipvid.files import hash_key
from clipvid.model.factory import create_model
from clipvid.model.feature_cache import FeatureCache
from clipvid.runs.config_files import parse_config
from clipvid.training.config import FinetuneConfig, TrainingConfig
from clipvid.training.features import open_features
from clipvid.training.trainer import Trainer

WORLD = WorldConfig(
    objects=("ball", "star"), motions=("horizontal",), num_frames=6, image_size=48,
    train_per_class=3, val_per_class=1, test_per_class=0,
)  # fmt: skip
HEAD = ["--model.adapter=none", "--model.head=linear", "--model.tune=[head]"]
MODELS = {
    "head": HEAD,
    "head text": ["--model.adapter=none", "--model.head={name: text, prompt_layers: 1}", "--model.tune=[head]"],
    "st_adapter": ["--model.adapter={name: st_adapter, layers: [-1], place: before_attention}"],
    "ila": ["--model.adapter={name: ila, hidden: 64, norm: group, layers: [-1]}"],
    "shift below": ["--model.adapter={name: shift, layers: [0]}", "--model.tune=[{name: partial, blocks: 1}]"],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return build_world(WORLD, tmp_path_factory.mktemp("world"), progress=False)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLIPVID_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


@pytest.fixture
def train(world: Path, tmp_path: Path) -> Callable[..., dict]:
    """Train for three epochs of three steps, and return what the run left."""

    def run(name: str, *more: str) -> dict:
        output = tmp_path / name
        words = {
            "data.root": world,
            "output_dir": output,
            "model.backbone": "tiny",
            "model.num_frames": 3,
            "training.epochs": 3,
            "training.per_device_train_batch_size": 4,
            "training.report_to": "none",
            "selection.folds": 0,
            "data.num_workers": 0,
            "optim.lr": 0.01,
        }
        command.main([*(f"--{key}={value}" for key, value in words.items()), *more])
        session = json.loads((output / "run.json").read_text())["sessions"][-1]
        return {
            "weights": (output / "model.safetensors").read_bytes(),
            "predictions": (output / "predictions.json").read_bytes(),
            "losses": [entry.get("loss") for entry in json.loads((output / "history.json").read_text())],
            "features": session.get("features"),
        }

    return run


def same(first: dict, second: dict) -> bool:
    return all(first[name] == second[name] for name in ("weights", "predictions", "losses"))


@pytest.mark.parametrize(
    ("model", "clips"),
    [
        ("head", "--data.augment.fixed=true"),
        ("head text", "--training.cache_views=2"),
        pytest.param("st_adapter", "--training.cache_views=2", marks=pytest.mark.slow),
        ("ila", "--data.augment.fixed=true"),
        pytest.param("shift below", "--training.cache_views=2", marks=pytest.mark.slow),
    ],
)
def test_training_is_bit_equal_with_and_without_cache(train, model: str, clips: str) -> None:
    words = [*MODELS[model], clips]
    plain = train("plain", *words, "--training.cache_features=off")
    kept, again = train("kept", *words), train("again", *words)
    assert plain["features"] is None
    assert same(plain, kept)
    assert same(plain, again)
    # 12 training clips with one view or two, and 4 evaluation clips; 3 epochs show 36, 3 evaluations 12. A linear head
    # that is trained first is shown each view once.
    shown = 36 + 12 + (12 if model == "head" else 0)
    clips_made = 12 * (2 if "views" in clips else 1) + 4
    assert kept["features"]["computed"] == clips_made
    assert kept["features"]["reused"] == shown - clips_made
    assert (again["features"]["computed"], again["features"]["reused"]) == (0, shown)


def test_views_take_turns_and_do_not_depend_on_the_seed(world: Path) -> None:
    manifest = load_split(DataConfig(str(world)), "train")
    model = create_model("tiny", adapter="none", num_frames=3)

    def shown(seed: int, epoch: int) -> bytes:
        dataset = train_dataset(DataConfig(str(world)), model, manifest, seed, views=3)
        return dataset[epoch, 5]["frames"].numpy().tobytes()

    views = {shown(0, epoch) for epoch in range(7)}
    assert len(views) == 3
    assert shown(0, 0) == shown(0, 3) != shown(0, 1)
    assert {shown(1, epoch) for epoch in range(3)} == views


def test_views_of_a_subset_are_those_of_the_whole(world: Path) -> None:
    manifest = load_split(DataConfig(str(world)), "train")
    model = create_model("tiny", adapter="none", num_frames=3)
    whole, part = (
        train_dataset(DataConfig(str(world)), model, videos, 0, views=1)
        for videos in (manifest, manifest.subset([7, 2]))
    )
    assert torch.equal(whole[0, 7]["frames"], part[4, 0]["frames"])


@pytest.mark.slow
def test_two_processes_share_one_cache(world: Path, tmp_path: Path) -> None:
    def launch(name: str, *more: str) -> dict:
        words = [*MODELS["st_adapter"], "--training.cache_views=2", "--training.epochs=2"]
        words += [f"--data.root={world}", f"--output_dir={tmp_path / name}", "--model.backbone=tiny", *more]
        words += ["--model.num_frames=3", "--training.per_device_train_batch_size=2", "--training.report_to=none"]
        words += ["--selection.folds=0"]
        folder = tmp_path / f"{name}_logs"
        all_end_well(finetune_together(2, words, folder, CLIPVID_CACHE=os.environ["CLIPVID_CACHE"]))
        session = json.loads((tmp_path / name / "run.json").read_text())["sessions"][-1]
        return {"weights": (tmp_path / name / "model.safetensors").read_bytes(), "features": session.get("features")}

    plain, kept = launch("plain", "--training.cache_features=off"), launch("kept")
    assert plain["weights"] == kept["weights"]
    assert kept["features"]["reused"] > 0


def test_interrupted_run_resumes_to_the_same_bits(train, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*MODELS["st_adapter"], "--training.cache_views=2"]
    whole = train("whole", *words)
    steps = Trainer._finish_step

    def interrupt(self: Trainer, epoch: int) -> None:
        steps(self, epoch)
        if self.state.step == 5:
            self._save()
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_finish_step", interrupt)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train("resumed", *words)
    monkeypatch.undo()
    resumed = train("resumed", *words)
    assert same(whole, resumed)


# What a key depends on


class Setting:
    """A model with its cache, and the clips that it is shown."""

    def __init__(self, world: Path, store: FeatureStore) -> None:
        self.store, self.world = store, world
        self.model = create_model("tiny", adapter={"name": "ila", "hidden": 16, "layers": [-1]}, num_frames=3)
        self.depth = self.model.frozen_depth()
        self.data, self.training, self.seed, self.views, self.precision = DataConfig(str(world)), True, 0, 2, "no"
        self.sample_changes: dict = {}
        self.epoch, self.order = 0, "forward"

    def dataset(self) -> VideoDataset:
        accelerator = Accelerator()
        manifest = load_split(self.data, "train")
        samples = (dataclasses.replace(manifest.samples[0], **self.sample_changes), *manifest.samples[1:])
        manifest = Manifest(samples, manifest.classes, manifest.root)
        cache = FeatureCache(self.store, self.model, self.depth, accelerator)
        cache._identity[4] = self.precision
        if self.training:
            return train_dataset(self.data, self.model, manifest, self.seed, self.views, cache.stored)
        loader = eval_loader(self.data, self.model, manifest, accelerator, 1, self.order, features=cache.stored)
        return loader.dataset

    def item(self) -> dict:
        return self.dataset()[self.epoch, 0]

    def keep(self) -> None:
        item = self.item()
        self.store.write(item["key"], torch.zeros(1), item["facts"])
        assert "features" in self.item()


def change_data(**fields) -> Callable[[Setting], None]:
    def change(setting: Setting) -> None:
        setting.data = dataclasses.replace(setting.data, **fields)

    return change


def change_augment(**fields) -> Callable[[Setting], None]:
    return change_data(augment=AugmentConfig(**fields))


def change(**fields) -> Callable[[Setting], None]:
    return lambda setting: setting.__dict__.update(fields)


def move_weights(setting: Setting) -> None:
    with torch.no_grad():
        setting.model.encoder.layers[0].block.mlp.c_fc.bias[0] += 1e-7


def rewrite_video(setting: Setting) -> None:
    """Put other content of the same length and time in place of the video."""
    path = setting.world / load_split(setting.data, "train").samples[0].path
    facts, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def other_model(**options) -> Callable[[Setting], None]:
    return lambda setting: setting.__dict__.update(
        model=create_model("tiny", adapter={"name": "ila", "hidden": 16, "layers": [-1]}, **options)
    )


CHANGES = {
    "weights": move_weights,
    "video": rewrite_video,
    "frames": other_model(num_frames=4),
    "image size": other_model(num_frames=3, image_size=32),
    "depth": change(depth=1),
    "precision": change(precision="bf16"),
    "start": change(sample_changes={"start": 0.05}),
    "end": change(sample_changes={"end": 0.15}),
    "sampling": change_data(sampling="dense"),
    "stride": change_data(sampling="dense", stride=2),
}
TRAINING_CHANGES = {
    "view": change(epoch=1),
    "no augmentation": change_augment(fixed=True),
    "scale": change_augment(scale=(0.5, 1.0)),
    "flip": change_augment(flip=True, label_map_flip={"ball moving left": "ball moving right"}),
    "rand_augment": change_augment(rand_augment=1),
    "color_jitter": change_augment(color_jitter=0.1),
    "grayscale": change_augment(grayscale=0.1),
    "random_erasing": change_augment(random_erasing=0.1),
    "crop": change_augment(crop="multi_scale"),
    "four strengths": change_augment(color_jitter=(0.1, 0.1, 0.1, 0.0)),
    "probability": change_augment(color_jitter=0.1, color_jitter_probability=0.5),
    "per_frame": change_augment(color_jitter=0.1, per_frame=True),
    "erase_color": change_augment(random_erasing=0.1, erase_color=(1, 2, 3)),
}
EVALUATION_CHANGES = {
    "resize": change_data(resize="squash"),
    "clips": change_data(test_clips=2),
    "crops": change_data(test_crops=2),
    "random frames": change_data(test_sampling="random"),
    "reversed": change(order="reversed"),
    "shuffled": change(order="shuffled"),
    "single": change(order="single"),
}
UNRELATED = {
    "seed": change(seed=7, epoch=0, views=1),
    "workers": change_data(num_workers=0),
    "repeats": change_data(repeats=2),
}


@pytest.fixture
def setting(world: Path, tmp_path: Path) -> Setting:
    copy = shutil.copytree(world, tmp_path / "copy")
    return Setting(copy, FeatureStore(tmp_path / "store", 2**30))


@pytest.mark.parametrize("name", CHANGES | TRAINING_CHANGES)
def test_training_clip_of_another_kind_is_not_read(setting: Setting, name: str) -> None:
    setting.keep()
    (CHANGES | TRAINING_CHANGES)[name](setting)
    assert "features" not in setting.item()


@pytest.mark.parametrize("name", CHANGES | EVALUATION_CHANGES)
def test_evaluation_clip_of_another_kind_is_not_read(setting: Setting, name: str) -> None:
    setting.training = False
    setting.keep()
    (CHANGES | EVALUATION_CHANGES)[name](setting)
    assert "features" not in setting.item()


@pytest.mark.parametrize("name", UNRELATED)
def test_stored_clip_is_read_whatever_does_not_change_it(setting: Setting, name: str) -> None:
    setting.views = 1
    setting.keep()
    UNRELATED[name](setting)
    assert "features" in setting.item()


@pytest.mark.parametrize("drawn", ["shuffled", "random"])
def test_drawn_frames_of_another_place_in_the_list_are_not_read(setting: Setting, drawn: str) -> None:
    """The draw depends on the place in the list."""
    setting.training = False
    if drawn == "shuffled":
        setting.order = "shuffled"
    else:
        change_data(test_sampling="random")(setting)
    setting.keep()
    assert "features" in setting.item()
    manifest = load_split(setting.data, "train")
    (setting.world / "moved.csv").write_text(
        f"path,label\n{manifest.samples[1].path},0\n{manifest.samples[0].path},0\n"
    )
    setting.data = dataclasses.replace(setting.data, train="moved.csv")
    assert "features" not in setting.dataset()[0, 1]


def test_labels_are_those_of_the_list_and_mirrored_clips_have_the_other(setting: Setting) -> None:
    change_augment(flip=True)(setting)
    setting.views = 1
    dataset = setting.dataset()
    items = [dataset[0, index] for index in range(len(dataset))]
    assert {item["facts"]["mirrored"] for item in items} == {"True", "False"}
    for item in items:
        setting.store.write(item["key"], torch.zeros(1), item["facts"])
    assert [dataset[0, index]["label"] for index in range(len(dataset))] == [item["label"] for item in items]


def test_unreadable_video_is_not_stored(setting: Setting) -> None:
    setting.training = False
    (setting.world / load_split(setting.data, "train").samples[0].path).write_bytes(b"no video")
    item = setting.item()
    assert not item["readable"]
    assert "key" not in item


def test_video_in_a_shard_is_known_by_its_place(tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    shard.write_bytes(b"x" * 100)
    places = [Stored(str(shard), offset, size) for offset, size in ((0, 10), (10, 10), (10, 20))]
    identities = [video_identity(place) for place in places]
    assert len({hash_key(identity) for identity in identities}) == 3
    shard.write_bytes(b"y" * 101)
    assert video_identity(places[0]) != identities[0]
    assert video_identity(Stored("https://a/b.mp4")) is None


# The store


def test_store_returns_what_was_written(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, 2**20)
    features = torch.randn(3, 5, dtype=torch.bfloat16)
    assert store.read(hash_key(1)) is None
    assert store.write(hash_key(1), features, {"mirrored": "True"})
    actual, facts = FeatureStore(tmp_path, 2**20).read(hash_key(1))
    assert torch.equal(actual, features)
    assert facts == {"mirrored": "True"}


@pytest.mark.parametrize("damage", [b"", b"short", None])
def test_damaged_file_is_computed_again(tmp_path: Path, damage: bytes | None) -> None:
    store = FeatureStore(tmp_path, 2**20)
    store.write(hash_key(1), torch.ones(100))
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-50] if damage is None else damage)
    assert store.read(hash_key(1)) is None
    store.write(hash_key(1), torch.ones(100))
    assert store.read(hash_key(1)) is not None


def test_old_partial_files_are_removed(tmp_path: Path) -> None:
    old, new = tmp_path / "ab" / ".old.1.2.partial", tmp_path / "ab" / ".new.1.2.partial"
    old.parent.mkdir()
    for path in (old, new):
        path.write_bytes(b"cut off")
    two_hours_ago = time.time() - 7200
    os.utime(old, (two_hours_ago, two_hours_ago))
    FeatureStore(tmp_path, 2**20).write(hash_key(1), torch.ones(3))
    assert not old.exists()
    assert new.exists()


def fill(store: FeatureStore, names: range) -> list[bool]:
    return [store.write(hash_key(name), torch.full((25_000,), float(name))) for name in names]


def test_least_recently_used_clips_make_room(tmp_path: Path) -> None:
    assert all(fill(FeatureStore(tmp_path, 10**6), range(9)))
    for place, name in enumerate(range(9)):
        (path,) = tmp_path.rglob(f"{hash_key(name)}*")
        os.utime(path, (1000 + place, 1000 + place))
    store = FeatureStore(tmp_path, 10**6)
    assert store.read(hash_key(0)) is not None  # used now
    assert all(fill(store, range(9, 12)))
    assert not store.full
    assert store.size() <= 10**6
    held = [name for name in range(12) if store.read(hash_key(name)) is not None]
    assert held == [0, *range(held[1], 12)]


def test_a_set_larger_than_the_limit_keeps_the_part_that_fits(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, 10**6)
    kept = fill(store, range(30))
    assert kept == sorted(kept, reverse=True)
    assert 0 < sum(kept) < 30
    assert store.full
    assert store.size() <= 10**6
    assert [store.read(hash_key(name)) is not None for name in range(30)] == kept


def test_limit_holds_for_several_writers(tmp_path: Path) -> None:
    stores = [FeatureStore(tmp_path, 10**6) for _ in range(3)]
    for name in range(30):
        fill(stores[name % 3], range(name, name + 1))
    assert stores[0].size() <= 1.1 * 10**6


# When a cache is opened


@pytest.mark.parametrize(
    ("training", "model", "reason"),
    [
        ({"mixup": 0.2}, {}, "mixup"),
        ({"cutmix": 1.0}, {}, "cutmix"),
        ({"cache_views": 0}, {}, "cache_views"),
        ({}, {"tune": ["full"]}, "embedding"),
        ({}, {"tune": ["layernorm"]}, "embedding"),
    ],
)
def test_size_is_refused_where_nothing_can_be_kept(training: dict, model: dict, reason: str) -> None:
    options = {"adapter": {"name": "ila", "layers": [-1]}} | model
    built, accelerator = create_model("tiny", num_frames=2, **options), Accelerator()
    for choice in (1.0, 0.5):
        config = TrainingConfig(**({"cache_views": 1, "cache_features": choice} | training))
        with pytest.raises(InputError, match=reason):
            open_features(config, DataConfig(), built, accelerator)


@pytest.mark.parametrize("option", [{"flip": True}, {"scale": (0.5, 1.0)}, {"grayscale": 0.5}])
def test_fixed_clips_have_no_augmentation(option: dict) -> None:
    with pytest.raises(InputError, match=r"data\.augment\.fixed"):
        AugmentConfig(fixed=True, **option)


@pytest.mark.parametrize("folder", ["file", "/proc/nothing"])
def test_unusable_cache_folder_turns_auto_off(tmp_path: Path, monkeypatch, capsys, folder: str) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CLIPVID_CACHE", str(tmp_path / folder))
    model, accelerator = create_model("tiny", adapter={"name": "ila", "layers": [-1]}, num_frames=2), Accelerator()
    assert open_features(TrainingConfig(cache_views=1), DataConfig(), model, accelerator) is None
    assert "training continues without" in capsys.readouterr().out
    with pytest.raises(InputError, match="CLIPVID_CACHE"):
        open_features(TrainingConfig(cache_views=1, cache_features=1.0), DataConfig(), model, accelerator)


@pytest.mark.parametrize("error", [OSError(122, "Disk quota exceeded"), SafetensorError("I/O error")])
def test_disk_that_is_full_ends_the_storing_only(tmp_path: Path, monkeypatch, capsys, error: Exception) -> None:
    store = FeatureStore(tmp_path, 2**20)
    monkeypatch.setattr("clipvid.data.feature_store.save_file", lambda *_, **__: (_ for _ in ()).throw(error))
    assert not store.write(hash_key(1), torch.ones(3))
    assert not store.write(hash_key(2), torch.ones(3))
    assert store.full
    assert capsys.readouterr().err.count("features cannot be stored") == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("value", ["off", "'off'", "auto", "2", "0.5"])
def test_choice_is_read_from_a_file(tmp_path: Path, value: str) -> None:
    (tmp_path / "run.yaml").write_text(f"training: {{cache_features: {value}}}\n")
    config = parse_config(FinetuneConfig, ["--config", str(tmp_path / "run.yaml")], "test")
    kind = float if value[0].isdigit() else str
    assert config.training.cache_features == kind(value.strip("'"))


def test_ensembles_in_weight_space_use_no_stored_features(world: Path, tmp_path: Path) -> None:
    def sweep(choice: str) -> list:
        recipe = "{model: {backbone: tiny, adapter: none, tune: [full], num_frames: 2}, training: {epochs: 2, "
        recipe += f"report_to: none, per_device_train_batch_size: 4, cache_features: {choice}}}}}"
        words = [f"--data.root={world}", f"--output_dir={tmp_path / choice}", "--sweep=[0.0, 0.5]", "--controls=[]"]
        run("evaluate", [*words, f"--recipe={recipe}", "--data.num_workers=0", "--zero_shot=false"])
        metrics = json.loads((tmp_path / choice / "metrics.json").read_text())
        return [value for key, value in metrics.items() if key != "config"]

    assert sweep("auto") == sweep("off")


@pytest.mark.parametrize(
    ("adapter", "training", "is_open"),
    [
        ({"name": "ila", "layers": [-1]}, {"cache_views": 1}, True),
        ({"name": "ila", "layers": [-1]}, {"cache_views": 1, "cache_features": "off"}, False),
        ({"name": "ila", "layers": [-1]}, {"epochs": 1}, False),
        ({"name": "ila", "layers": [-1]}, {"epochs": 2}, True),  # evaluations recur
        ({"name": "ila", "layers": "all"}, {"cache_views": 1}, False),
        ({"name": "ila", "layers": "all"}, {"cache_views": 1, "cache_features": 0.1}, True),
        ({"name": "ila", "layers": [-1]}, {"cache_views": 1, "mixup": 0.2}, False),
    ],
)
def test_auto_keeps_what_recurs(adapter: dict, training: dict, is_open: bool, capsys) -> None:
    model = create_model("tiny", adapter=adapter, num_frames=2)
    assert (open_features(TrainingConfig(**training), DataConfig(), model, Accelerator()) is not None) == is_open
    printed = capsys.readouterr().out
    assert ("is kept in" in printed) == is_open
    assert ("keeps no features: " in printed) == ("cache_views" in training and not is_open)
    open_features(TrainingConfig(**training), DataConfig(), model, Accelerator(), announce=False)
    assert not capsys.readouterr().out


def test_cache_that_is_full_trains_the_same(train) -> None:
    words = [*MODELS["st_adapter"], "--training.cache_views=1"]
    plain = train("plain", *words, "--training.cache_features=off")
    limited = train("limited", *words, "--training.cache_features=0.0005")
    assert same(plain, limited)
    assert limited["features"]["full"]
    assert limited["features"]["reused"] > 0


def test_folder_is_never_larger_than_asked(train, cache: Path) -> None:
    train("run", *HEAD, "--training.cache_views=1", "--training.cache_features=0.00002")
    assert 0 < sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) <= 0.00002 * 2**30
