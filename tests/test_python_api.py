"""`clipvid.finetune` and `clipvid.evaluate` compared with the verbs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.utils.data import Dataset, IterableDataset

import clipvid
from clipvid import InputError, RunError
from clipvid.commands import evaluate as evaluate_verb
from clipvid.commands import finetune as finetune_verb
from clipvid.data.manifest import load_manifest
from clipvid.data.map_dataset import dataset_manifest
from clipvid.data.reader import open_video
from clipvid.data.synthetic.world import WorldConfig, build_world
from clipvid.experiments.config import EvaluateConfig
from clipvid.runs.config_files import read_config
from clipvid.training.config import FinetuneConfig

WORLD = WorldConfig(
    objects=("ball", "star"), motions=("horizontal",), num_frames=6, image_size=32,
    train_per_class=3, val_per_class=2, test_per_class=0,
)  # fmt: skip
NAMES = ["ball moving left", "ball moving right", "star moving left", "star moving right"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_world(WORLD, tmp_path_factory.mktemp("world"), progress=False)


def training(folder: Path, world: Path, **data: Any) -> dict[str, Any]:
    """Return the config of a run of one step."""
    return {
        "output_dir": folder,
        "model": {"adapter": {"name": "ila", "hidden": 16}, "num_frames": 3},
        "data": {"root": world, "num_workers": 0, **data},
        "training": {"epochs": 1, "per_device_train_batch_size": 12, "report_to": "none"},
        "optim": {"lr": 0.01},
        "selection": {"folds": 0},
    }


def evaluation(folder: Path, world: Path, **options: Any) -> dict[str, Any]:
    data = {"root": world, "num_workers": 0}
    return {"output_dir": folder, "num_frames": 3, "controls": [], "data": data, "hardest_clips": 0} | options


def write(config: dict[str, Any], path: Path) -> Path:
    path.write_text(yaml.safe_dump(json.loads(json.dumps(config, default=str))))
    return path


def comparable(folder: Path) -> dict[str, Any]:
    figures = json.loads((folder / "metrics.json").read_text())
    return {key: value for key, value in figures.items() if key not in ("config", "name")}


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> clipvid.Run:
    return clipvid.finetune(training(tmp_path_factory.mktemp("trained"), world))


def test_finetune_equals_the_verb(trained: clipvid.Run, world: Path, tmp_path: Path) -> None:
    finetune_verb.main(["--config", str(write(training(tmp_path / "verb", world), tmp_path / "run.yaml"))])
    assert comparable(trained.folder) == comparable(tmp_path / "verb")
    assert trained.figures == json.loads((trained.folder / "metrics.json").read_text())
    assert trained.model is not None
    assert trained.model.labels == NAMES
    by_verb = clipvid.from_pretrained(tmp_path / "verb").trained_state()
    assert all(torch.equal(value, by_verb[name]) for name, value in trained.model.trained_state().items())


def test_finished_run_is_loaded(trained: clipvid.Run, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = clipvid.finetune(read_config(FinetuneConfig, training(trained.folder, world)))
    assert again.figures == trained.figures
    assert "is already finished" in capsys.readouterr().out


@pytest.mark.parametrize("source", ["config", "mapping", "file", "model"])
def test_evaluate_equals_the_verb(trained: clipvid.Run, world: Path, tmp_path: Path, source: str) -> None:
    config = evaluation(tmp_path / "verb", world, model=trained.folder)
    evaluate_verb.main(["--config", str(write(config, tmp_path / "run.yaml"))])
    config["output_dir"] = tmp_path / "python"
    if source == "model":
        run = clipvid.evaluate(trained.model, config | {"model": "tiny"})
    elif source == "file":
        run = clipvid.evaluate(write(config, tmp_path / "python.yaml"))
    else:
        run = clipvid.evaluate(config if source == "mapping" else read_config(EvaluateConfig, config))
    assert comparable(run.folder) == comparable(tmp_path / "verb")
    assert run.figures == json.loads((tmp_path / "python" / "metrics.json").read_text())
    assert run.model is not None
    assert run.model.labels == NAMES


def test_leave_one_group_out_has_no_single_model(world: Path, tmp_path: Path) -> None:
    config = training(tmp_path, world, protocol="leave_one_group_out", group_pattern="(ball|star)")
    config["training"]["per_device_train_batch_size"] = 8
    run = clipvid.finetune(config)
    assert run.model is None
    assert (tmp_path / "fold_ball" / "model.safetensors").is_file()
    assert run.figures == json.loads((tmp_path / "metrics.json").read_text())


@pytest.mark.parametrize("call", [clipvid.finetune, clipvid.evaluate])
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"data": {"rooot": "x"}}, "rooot"),
        ({"data": {"stride": "two"}}, r"data\.stride"),
        ({"data": {"stride": 0}}, r"data\.stride"),
        ({"data": None}, "data"),
        ({"data": {"root": object()}}, "a mapping that YAML cannot represent"),
        (3, "config is of type int; expected a .*Config, a mapping, or the path"),
        ("no/such.yaml", "no/such.yaml.*: no such file"),
        (read_config(FinetuneConfig, {}).data, "config is of type DataConfig"),
    ],
)
def test_configs_are_refused_with_an_input_error(call: Any, config: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(config)


@pytest.mark.parametrize("text", ["data: {rooot: x}", "data: [", "[1, 2]", "data: {stride: two}"])
def test_yaml_files_are_refused_with_an_input_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(InputError):
        clipvid.finetune(tmp_path / "run.yaml")


def test_a_folder_with_another_run_is_refused(trained: clipvid.Run, world: Path) -> None:
    with pytest.raises(InputError, match=r"another config \(seed differ\)"):
        clipvid.finetune(training(trained.folder, world) | {"seed": 1})


def test_a_second_precision_in_a_process_is_refused(trained: clipvid.Run, world: Path, tmp_path: Path) -> None:
    config = evaluation(tmp_path / "run", world, mixed_precision="bf16")
    with pytest.raises(RunError, match="mixed_precision=bf16, but an earlier run of this process has no"):
        clipvid.evaluate(config)
    assert not (tmp_path / "run").exists()


def test_a_model_and_a_recipe_exclude_each_other(trained: clipvid.Run, world: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="recipe trains a model"):
        clipvid.evaluate(trained.model, evaluation(tmp_path, world, recipe={}))
    with pytest.raises(InputError, match="expected a VideoCLIP"):
        clipvid.evaluate({}, evaluation(tmp_path, world))


class Decoded(Dataset):
    """Dataset of all frames of the videos of a list."""

    def __init__(self, world: Path, split: str) -> None:
        self.manifest = load_manifest(world, f"{split}.csv")

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with open_video(self.manifest.video(index)) as video:
            frames = video.read(range(len(video))).permute(0, 3, 1, 2)
        return {"frames": frames, "label": self.manifest.samples[index].label}


class Noise(Dataset):
    """Dataset of items with different numbers of frames and sizes. `changed` replaces parts of item `place`."""

    def __init__(self, length: int, place: int = 0, **changed: Any) -> None:
        self.length, self.place, self.changed = length, place, changed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        generator = torch.Generator().manual_seed(index)
        frames = torch.randint(0, 256, (index % 5 + 1, 3, 32 + index, 40), dtype=torch.uint8, generator=generator)
        item = {"frames": frames, "label": index % 2}
        return item | self.changed if index == self.place else item


@pytest.mark.parametrize("workers", [0, 1])
def test_datasets_of_decoded_videos_equal_the_list(
    trained: clipvid.Run, world: Path, tmp_path: Path, workers: int
) -> None:
    config = training(tmp_path, tmp_path / "nothing", num_workers=workers)
    run = clipvid.finetune(config, Decoded(world, "train"), Decoded(world, "val"), NAMES)
    assert run.model is not None
    assert run.model.labels == NAMES
    assert run.figures["top1"] == trained.figures["top1"]
    assert run.figures["nll"] == trained.figures["nll"]
    state = trained.model.trained_state()
    assert all(torch.equal(value, state[name]) for name, value in run.model.trained_state().items())


def test_dataset_runs_resume(tmp_path: Path) -> None:
    config = training(tmp_path, tmp_path, augment={"flip": True}, test_clips=2, sampling="dense", stride=2)
    datasets = {"train": Noise(12), "val": Noise(3), "classes": ["a", "b"]}
    run = clipvid.finetune(config, **datasets)
    assert clipvid.finetune(config, **datasets).figures == run.figures
    for changed, what in (
        ({"train": Noise(13)}, "another train"),
        ({"val": Noise(4)}, "another val"),
        ({"classes": ["a", "c"]}, "another train and another val"),
    ):
        with pytest.raises(InputError, match=f"contains a run on {what} "):
            clipvid.finetune(config, **datasets | changed)


WRONG = {
    "floats": (
        {"frames": torch.rand(2, 3, 8, 8)},
        r"frames of torch.float32 \[2, 3, 8, 8\]; expected .*uint8 \[N",
    ),
    "channels last": (
        {"frames": torch.zeros(2, 8, 8, 3, dtype=torch.uint8)},
        r"frames of .* \[2, 8, 8, 3\]; expected",
    ),
    "one frame": ({"frames": torch.zeros(3, 8, 8, dtype=torch.uint8)}, r"frames of torch.uint8 \[3, 8, 8\]"),
    "no frame": (
        {"frames": torch.zeros(0, 3, 8, 8, dtype=torch.uint8)},
        r"frames of \[0, 3, 8, 8\]; expected N, H",
    ),
    "list": ({"frames": [1, 2]}, "frames of type list; expected a tensor"),
    "high label": ({"label": 2}, "label 2; expected an int from 0 to 1, for 2 classes"),
    "negative label": ({"label": -1}, "label -1; expected an int from 0 to 1"),
    "name": ({"label": "a"}, "label 'a' of type str; expected an int"),
    "bool": ({"label": True}, "label True; expected an int"),
    "fraction": ({"label": 1.0}, "label 1.0 of type float; expected an int"),
}


@pytest.mark.parametrize(("changed", "message"), WRONG.values(), ids=WRONG)
def test_wrong_items_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=rf"^train\[0\] has {message}"):
        dataset_manifest(Noise(3, **changed), "train", ["a", "b"])
    manifest = dataset_manifest(Noise(3, place=2, **changed), "train", ["a", "b"])
    with pytest.raises(InputError, match=rf"^train\[2\] has {message}"):
        manifest.samples[2].item()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("split", ["train", "val"])
def test_wrong_items_end_a_run(tmp_path: Path, split: str, workers: int) -> None:
    config = training(tmp_path, tmp_path, num_workers=workers)
    datasets = {"train": Noise(12), "val": Noise(4)} | {split: Noise(12, place=1, label=7)}
    with pytest.raises(InputError, match=rf"{split}\[1\] has label 7; expected an int from 0 to 1"):
        clipvid.finetune(config, **datasets, classes=["a", "b"])
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize("label", [torch.tensor(1), torch.tensor([1], dtype=torch.int32)[0].numpy()])
def test_labels_may_be_integers_of_torch_and_numpy(label: Any) -> None:
    assert dataset_manifest(Noise(2, label=label), "train", ["a", "b"]).samples[0].item()[1] == 1


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        yield {}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train": Stream()}, "train is a Stream; expected a map-style Dataset"),
        ({"val": Noise(0)}, "val is a Noise of length 0"),
        ({"val": None}, "val not given; Datasets need train, val and classes together"),
        ({"classes": None}, "classes not given"),
        ({"classes": "ab"}, "classes='ab': expected a list"),
        ({"classes": []}, r"classes=\[\]: expected a list"),
        ({"classes": ["a", "a"]}, "different names"),
        ({"train": [{"frames": 1}], "val": Noise(2)}, r"train\[0\] has a mapping with the keys \['frames'\]"),
        ({"train": [3], "val": Noise(2)}, r"train\[0\] has a value of type int; expected a mapping"),
    ],
)
def test_wrong_datasets_are_refused_early(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    datasets = {"train": Noise(12), "val": Noise(2), "classes": ["a", "b"]} | changed
    with pytest.raises(InputError, match=message):
        clipvid.finetune(training(tmp_path / "run", tmp_path), **datasets)
    assert not (tmp_path / "run").exists()


def test_same_dataset_for_both_splits_is_refused(tmp_path: Path) -> None:
    dataset = Noise(12)
    with pytest.raises(InputError, match="train and val are the same Dataset"):
        clipvid.finetune(training(tmp_path, tmp_path), dataset, dataset, ["a", "b"])
    config = training(tmp_path, tmp_path, protocol="leave_one_group_out")
    with pytest.raises(InputError, match="Datasets have no groups; expected holdout"):
        clipvid.finetune(config, dataset, Noise(2), ["a", "b"])
