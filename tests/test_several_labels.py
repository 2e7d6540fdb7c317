"""Several labels per video: lists, loss, metrics, training, prediction, export, explanation and refusals."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from processes import all_end_well, finetune
from sklearn.metrics import average_precision_score, precision_recall_fscore_support
from test_training import arguments, world  # noqa: F401
from torchvision.ops import sigmoid_focal_loss

import clipvid
from clipvid import InputError
from clipvid.commands import evaluate, explain, export, inspect, predict
from clipvid.commands import finetune as command
from clipvid.data.config import AugmentConfig, DataConfig
from clipvid.data.folds import held_out_folds
from clipvid.data.manifest import Manifest, ManifestError, load_manifest
from clipvid.data.splits import load_splits, train_dataset
from clipvid.evaluation.loop import ViewScores
from clipvid.evaluation.results import read_predictions
from clipvid.evaluation.several_labels import average_precision, several_label_metrics
from clipvid.hub.card import card_text
from clipvid.model.factory import create_model
from clipvid.training.objectives import SeveralLabels, positive_weights

CLASSES = ("ball", "moving left", "moving right", "star")
SHAPE = SimpleNamespace(num_frames=4, image_size=48)


def relabel(world: Path, split: str) -> list[tuple[str, list[str]]]:  # noqa: F811
    """Return paths and labels: object and direction, some videos with the object only, one with none."""
    rows = []
    names = [row["name"] for row in csv.DictReader((world / "classes.csv").open())]
    for number, row in enumerate(csv.DictReader((world / f"{split}.csv").open())):
        thing, _, direction = (names[int(row["label"])] if row["label"].isdigit() else row["label"]).split()
        labels = [thing, f"moving {direction}"][: 1 if number % 5 == 4 else 2]
        rows.append((row["path"], [] if number == 3 else labels))
    return rows


def as_csv(rows: list[tuple[str, list[str]]]) -> str:
    return "path,labels\n" + "".join(f"{path},{'; '.join(labels)}\n" for path, labels in rows)


@pytest.fixture(scope="session")
def several(world: Path, tmp_path_factory) -> Path:  # noqa: F811
    """Return a folder with lists `train.csv` and `val.csv` of the world's videos, with absolute paths."""
    folder = tmp_path_factory.mktemp("several")
    for split in ("train", "val"):
        rows = [(f"{split}/{path.split('/', 1)[1]}", labels) for path, labels in relabel(world, split)]
        (folder / f"{split}.csv").write_text(as_csv(rows))
        (folder / split).symlink_to(world / split)
    return folder


def options(several: Path, output: Path, *more: str) -> list[str]:
    return arguments(several, output, "--data.allow_outside_root=true", *more)


@pytest.fixture(scope="session")
def trained(several: Path, tmp_path_factory) -> Path:
    """Return the folder of a model that was trained by a process."""
    output = tmp_path_factory.mktemp("trained") / "run"
    words = options(several, output, "--training.epochs=4", "--training.load_best_model_at_end=true")
    words += ["--training.early_stopping=4"]
    worker = finetune(words, output.parent / "log")
    all_end_well([worker])
    assert "epoch 1/4: mAP 0." in worker.said
    assert "the mean average precision (mAP) over the classes is" in worker.said
    assert "The hardest class is '" in worker.said
    return output


def write(folder: Path, name: str, rows: list[tuple[str, list[str]]]) -> Path:
    """Write a list in the format of its suffix, and empty videos."""
    for path, _ in rows:
        (folder / path).touch()
    file = folder / name
    paths, labels = zip(*rows, strict=True)
    if file.suffix == ".csv":
        file.write_text(as_csv(rows))
    elif file.suffix == ".json":
        file.write_text(json.dumps([{"path": path, "labels": own} for path, own in rows]))
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps({"path": path, "labels": ";".join(own)}) + "\n" for path, own in rows))
    else:
        pq.write_table(pa.table({"path": paths, "labels": list(labels)}), file)
    return file


ROWS = [("a.mp4", ["run", "jump"]), ("b.mp4", []), ("c.mp4", ["jump"]), ("d.mp4", ["jump", "run", "run"])]


@pytest.mark.parametrize("name", ["list.csv", "list.json", "list.jsonl", "list.parquet"])
def test_labels_of_every_format_are_read(name: str, tmp_path: Path) -> None:
    write(tmp_path, name, ROWS)
    manifest = load_manifest(tmp_path, name, None)
    assert manifest.class_names == ["jump", "run"]
    assert [sample.labels for sample in manifest.samples] == [(0, 1), (), (0,), (0, 1)]
    assert manifest.is_multi_label
    assert [manifest.label_text(sample) for sample in manifest.subset([2, 0, 1]).samples] == ["jump", "jump;run", ""]


def test_a_hash_depends_on_the_labels_and_not_on_the_format(tmp_path: Path) -> None:
    hashes = {load_manifest(tmp_path, write(tmp_path, name, ROWS).name, None).hash for name in ("a.csv", "b.parquet")}
    other = load_manifest(tmp_path, write(tmp_path, "c.csv", [*ROWS[:-1], ("d.mp4", ["run"])]).name, None)
    assert len(hashes) == 1
    assert other.hash not in hashes


def test_ids_and_separators_of_csv(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text('path;labels\na.mp4;"0;run"\nb.mp4;1\n')
    manifest = load_manifest(
        tmp_path, "list.csv", [clipvid_class(0, "jump"), clipvid_class(1, "run")], check_files=False
    )
    assert [sample.labels for sample in manifest.samples] == [(0, 1), (1,)]


def clipvid_class(number: int, name: str):
    from clipvid.data.manifest import ClassInfo

    return ClassInfo(number, name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,labels\na.mp4,run;jmp\n", r"l\.csv:2: label 'jmp' is neither .*did you mean 'jump'"),
        ("path,labels\na.mp4,run\nb.mp4,jump;9\n", r"l\.csv:3: label 9 is outside of the 2 classes"),
        ("path,label,labels\na.mp4,run,jump\n", "has the columns label and labels; keep one"),
        ("path,labels\na.mp4,run\na.mp4,jump\n", "(?s)already listed at .* one column `labels`"),
        ("path,label\na.mp4,run;jump\n", r"is several labels; write a list .* columns path and labels"),
    ],
)
def test_wrong_labels_are_refused_with_their_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text(text)
    classes = [clipvid_class(0, "jump"), clipvid_class(1, "run")]
    with pytest.raises(ManifestError, match=message):
        load_manifest(tmp_path, "l.csv", classes, check_files=False)


def test_json_without_labels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "l.json").write_text(json.dumps([{"path": "a.mp4", "labels": ["run"]}, {"path": "b.mp4"}]))
    with pytest.raises(ManifestError, match=r"l\.json:2: labels is None; expected a list"):
        load_manifest(tmp_path, "l.json", None, check_files=False)


def test_a_separator_in_a_class_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "l.json").write_text(json.dumps([{"path": "a.mp4", "labels": ["run; fast"]}]))
    with pytest.raises(ManifestError, match="the class 'run; fast' has one in its name; rename it"):
        load_manifest(tmp_path, "l.json", None, check_files=False)


def test_train_and_val_must_have_the_same_column(several: Path, tmp_path: Path) -> None:
    rows = list(csv.DictReader((several / "val.csv").open()))
    one = tmp_path / "one.csv"
    one.write_text("path,label\n" + "".join(f"{row['path']},ball\n" for row in rows))
    data = DataConfig(root=str(several), val=str(one), classes=None, allow_outside_root=True)
    with pytest.raises(ManifestError, match=r"data\.train has several labels per video .* data\.val has one"):
        load_splits(data)


def test_targets_are_one_for_each_label_and_follow_a_mirror(several: Path) -> None:
    data = DataConfig(root=str(several), classes=None, allow_outside_root=True, augment=AugmentConfig(flip=True))
    train, _ = load_splits(data)
    assert train.class_names == list(CLASSES)
    dataset = train_dataset(data, SHAPE, train, seed=0)
    seen = set()
    for index, sample in enumerate(train.samples):
        for epoch in range(6):
            target = dataset[epoch, index]["label"]
            expected = [number in sample.labels for number in range(4)]
            mirrored = [expected[0], expected[2], expected[1], expected[3]]
            assert target.tolist() in (expected, mirrored)
            seen.add(target.tolist() == expected)
    assert seen == {True, False}


def test_folds_spread_the_rarest_label(tmp_path: Path) -> None:
    rows = [(f"{number}.mp4", ["often", "rare"] if number % 8 == 0 else ["often"]) for number in range(24)]
    manifest = load_manifest(tmp_path, write(tmp_path, "l.csv", rows).name, None)
    unit, folds = held_out_folds(manifest, 3, 0)
    assert unit == "video"
    assert [sum(len(manifest.samples[index].labels) == 2 for index in fold) for fold in folds] == [1, 1, 1]


def reference(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the average precision by the definition: the mean precision at the positives."""
    total = 0.0
    for score, label in zip(scores, labels, strict=True):
        if label:
            total += labels[scores >= score].sum() / (scores >= score).sum()
    return total / labels.sum()


@pytest.mark.parametrize("is_tied", [False, True])
def test_average_precision_is_that_of_sklearn_and_of_the_definition(is_tied: bool) -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.random((60, 7)).astype(np.float32), rng.random((60, 7)) < 0.3
    if is_tied:
        scores = np.round(scores, 1) + np.float32(0.01)
    labels[:, 6] = False
    figures = several_label_metrics(torch.from_numpy(scores), torch.from_numpy(labels))
    each = [average_precision_score(labels[:, k], scores[:, k]) for k in range(6)]
    for k, expected in enumerate(each):
        own = average_precision(torch.from_numpy(scores[:, k]), torch.from_numpy(labels[:, k]))
        assert own == pytest.approx(expected) == reference(scores[:, k], labels[:, k])
    assert figures["map"]["value"] == pytest.approx(np.mean(each))
    assert figures["map"]["low"] < figures["map"]["value"] < figures["map"]["high"]
    assert figures["map_micro"] == pytest.approx(average_precision_score(labels, scores, average="micro"))
    expected = precision_recall_fscore_support(labels, scores >= 0.5, average="micro")[:3]
    assert [figures[name] for name in ("precision", "recall", "f1")] == pytest.approx(expected)
    macro = precision_recall_fscore_support(labels[:, :6], scores[:, :6] >= 0.5, average="macro", zero_division=0)
    assert figures["macro_f1"] == pytest.approx(macro[2])


def test_labels_of_unreadable_videos_count_as_not_found() -> None:
    scores = torch.tensor([[0.9, 0.2], [0.8, 0.7], [0.0, 0.0]])
    labels = torch.tensor([[True, False], [False, True], [True, True]])
    figures = several_label_metrics(scores, labels)
    assert figures["map"]["value"] == 0.5  # each class finds one of two videos, in the first place
    assert (figures["recall"], figures["unreadable"]) == (0.5, 1)


def test_loss_equals_a_sum_over_videos_and_classes() -> None:
    logits, labels = torch.randn(5, 3), torch.rand(5, 3) < 0.4
    output = SimpleNamespace(logits=logits, losses={})
    weights = (2.0, 0.5, 1.0)
    objective = SeveralLabels(0, label_smoothing=0.2, positive_weights=weights)
    loss, parts = objective(lambda frames, **options: output, {"frames": torch.zeros(5), "label": labels}, 0)
    total = 0.0
    for row, own in zip(logits, labels, strict=True):
        for value, label, weight in zip(row, own, weights, strict=True):
            target, probability = 0.8 * float(label) + 0.1, torch.sigmoid(value)
            total -= float(weight * target * probability.log() + (1 - target) * (1 - probability).log())
    assert float(loss) == pytest.approx(total / 15, rel=1e-5)
    assert parts.keys() == {"binary_cross_entropy", "loss"}


def test_positive_weights_are_videos_without_per_video_with_the_label() -> None:
    assert positive_weights([[0], [0, 1], [], [0]], 3) == (1 / 3, 3.0, 1.0)


def test_scores_of_a_zero_shot_model_are_not_rounded_to_one() -> None:
    logits = torch.tensor([[[31.0, 29.0]], [[30.0, 32.0]], [[1.0, 1.0]]])
    views = ViewScores(torch.arange(3), torch.tensor([[True, False]] * 3), torch.tensor([True, True, False]), logits)
    assert (views.averaged().scores[:2] == 1).all()
    scores = views.averaged(ranks_only=True).scores
    torch.testing.assert_close(scores[:2], (logits[:2, 0] - 30.5).sigmoid())
    assert (scores[2] == 0).all()


def test_a_trained_folder_says_that_a_clip_may_have_several_classes(trained: Path, several: Path) -> None:
    record = json.loads((trained / "config.json").read_text())
    assert (record["format_version"], record["model"]["multi_label"], tuple(record["labels"])) == (2, True, CLASSES)
    figures = json.loads((trained / "metrics.json").read_text())
    assert figures["map"]["count"] == 12
    assert figures["selected"]["by"] == "val_map"
    assert figures["config"]["model"]["multi_label"] is None  # it follows from the list
    assert "top1" not in figures
    predictions = json.loads((trained / "predictions.json").read_text())
    val = load_manifest(several, "val.csv", None, allow_outside_root=True)
    for row, index in zip(predictions["labels"], predictions["indices"], strict=True):
        assert [k for k, own in enumerate(row) if own] == list(val.samples[index].labels)
    again = several_label_metrics(torch.tensor(predictions["scores"]), torch.tensor(predictions["labels"]))
    assert again["map"] == figures["map"]
    card = card_text(trained, "user/model")
    assert "A video may have several of them" in card
    assert "| map | " in card
    assert "type: mAP" in card
    page = (trained / "report.html").read_text()
    assert all(text in page for text in ("micro mAP", "average precision", "validation mAP"))


def test_the_first_bias_gives_the_share_of_labels(several: Path, tmp_path: Path) -> None:
    words = options(
        several, tmp_path, "--training.epochs=1", "--optim.lr=0", "--optim.head_lr=0", "--model.tune=[head]"
    )
    command.main(words)
    scores = torch.tensor(json.loads((tmp_path / "predictions.json").read_text())["scores"])
    model = clipvid.from_pretrained(tmp_path)
    train = load_manifest(several, "train.csv", None, allow_outside_root=True)
    share = sum(len(sample.labels) for sample in train.samples) / (4 * len(train))
    assert model.label_bias.item() != 0
    assert scores.logit().mean().sigmoid().item() == pytest.approx(share, abs=0.1)


def test_all_doors_give_the_same_probabilities(trained: Path, several: Path, capsys) -> None:
    from transformers import pipeline

    video = str(next((several / "val").glob("*/*.mp4")))
    model = clipvid.from_pretrained(trained)
    scores = clipvid.Predictor(model).scores(video)
    by_class = dict(zip(CLASSES, scores.tolist(), strict=True))
    clip = clipvid.Predictor(model).reader
    with clipvid.data.reader.open_video(video) as opened:
        logits = model(clip.read(opened)).logits
    torch.testing.assert_close(scores, torch.sigmoid(logits[0]).detach())
    assert scores.sum().item() != pytest.approx(1, abs=1e-3)

    answers = {row["label"]: row["score"] for row in pipeline("video-classification", model=str(trained))(video)}
    assert answers == pytest.approx(by_class, abs=1e-5)

    predict.main([video, "--model", str(trained), "--num_workers", "0"])
    shown = json.loads(capsys.readouterr().out)["predictions"]
    assert {row["label"] for row in shown} == {name for name, score in by_class.items() if score >= 0.5}
    point = next(clipvid.Predictor(model).iter_timeline(video, 10, 10))
    torch.testing.assert_close(point.scores, scores, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_an_exported_model_has_the_same_probabilities(trained: Path, several: Path, tmp_path: Path, capsys) -> None:
    video = str(next((several / "val").glob("*/*.mp4")))
    scores = clipvid.Predictor(clipvid.from_pretrained(trained)).scores(video)
    by_class = dict(zip(CLASSES, scores.tolist(), strict=True))
    file = tmp_path / "model.onnx"
    export.main(["--model", str(trained), "--output", str(file)])
    assert json.loads(capsys.readouterr().out)["multi_label"] is True
    with pytest.raises(SystemExit, match="0"):
        predict.main([video, "--model", str(file), "--threshold", "0.01"])
    shown = {row["label"]: row["score"] for row in json.loads(capsys.readouterr().out)["predictions"]}
    assert shown == pytest.approx({name: score for name, score in by_class.items() if score >= 0.01}, abs=1e-5)


def test_transformers_loss_is_binary_cross_entropy(trained: Path) -> None:
    from transformers import AutoModelForVideoClassification

    model = AutoModelForVideoClassification.from_pretrained(trained)
    assert model.config.problem_type == "multi_label_classification"
    frames = torch.randint(256, (2, 4, 3, 48, 48), dtype=torch.uint8)
    labels = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0]])
    output = model(frames, labels)
    auxiliary = sum(model.clip(frames).losses.values())
    plain = sigmoid_focal_loss(output.logits, labels.float(), alpha=-1, gamma=0, reduction="mean")
    torch.testing.assert_close(output.loss, plain + auxiliary)


def test_an_explanation_is_about_the_class_alone(trained: Path, several: Path, tmp_path: Path, capsys) -> None:
    video = str(next((several / "val").glob("*/*.mp4")))
    model = clipvid.from_pretrained(trained)
    reasons = clipvid.explain(model, video, label="star", time=False)
    assert float(reasons.probabilities.sum()) != pytest.approx(1, abs=1e-3)
    logits = torch.randn(2, 4)
    torch.testing.assert_close(reasons.target.score(logits), logits[:, 3])
    compared = clipvid.explain(model, video, label="star", against="ball", time=False)
    torch.testing.assert_close(compared.target.score(logits), logits[:, 3] - logits[:, 0])
    explain.main([video, "--model", str(trained), "--time", "false", "--output_dir", str(tmp_path)])
    assert "against all other classes" not in (tmp_path / "report.html").read_text()


def test_evaluate_measures_a_trained_and_a_zero_shot_model(trained: Path, several: Path, tmp_path: Path) -> None:
    data = [f"--data.root={several}", "--data.allow_outside_root=true", "--data.num_workers=0"]
    evaluate.main(["--model", str(trained), *data, "--controls=[reversed]", f"--output_dir={tmp_path}"])
    figures = json.loads((tmp_path / "metrics.json").read_text())
    before = json.loads((trained / "metrics.json").read_text())
    assert figures["map"] == before["map"]
    assert figures["by_class"].keys() == figures["classes"].keys() == set(CLASSES)
    assert figures["controls"]["reversed"]["map"]["count"] == 12
    assert "f1" in figures
    assert "f1" not in figures["zero_shot"]
    assert 0 < figures["zero_shot"]["map"]["value"] < 1
    stored = read_predictions(tmp_path / "predictions.parquet")
    assert {scores.labels.dtype for scores in stored.values()} == {torch.bool}
    assert "Average precision of each class" in (tmp_path / "report.html").read_text()
    for option, message in (
        ("--alpha=0.5", "weight-space ensembling needs a zero-shot model whose probabilities"),
        ("--protocol=few_shot", "the list has several labels per video"),
        ("--protocol=base_to_novel", "the list has several labels per video"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate.main(["--model", str(trained), *data, option, f"--output_dir={tmp_path / option[2:7]}"])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--data.balance=true", r"use training\.class_weights: balanced"),
        ("--training.diagnose=true", r"training\.diagnose measures top-1"),
        ("--model.multi_label=false", r"model\.multi_label=False, but data\.train has the column labels"),
    ],
)
def test_options_for_one_label_are_refused(option: str, message: str, several: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        command.main(options(several, tmp_path / "run", option))


def test_options_for_several_labels_are_refused_with_one(world: Path, tmp_path: Path) -> None:  # noqa: F811
    more = ["--training.load_best_model_at_end=true", "--training.metric_for_best_model=val_map"]
    with pytest.raises(InputError, match="val_map: it is measured for several labels per video"):
        command.main(arguments(world, tmp_path / "run", *more))
    with pytest.raises(InputError, match=r"model\.multi_label=True, but data\.train has the column label"):
        command.main(arguments(world, tmp_path / "run", "--model.multi_label=true"))


def test_inspect_refuses_several_labels(several: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"several labels per video \(column labels\), which clipvid inspect"):
        inspect.main(
            [str(several / "train.csv"), "--allow_outside_root=true", "--classes=null", f"--output_dir={tmp_path}"]
        )


def test_training_continues_from_a_model_with_several_labels(trained: Path, several: Path, tmp_path: Path) -> None:
    model = create_model("tiny", adapter={"name": "ila", "hidden": 64, "norm": "frozen_batch"}, multi_label=True)
    model.set_labels(CLASSES)
    started = clipvid.hub.start_from(model, trained)
    assert "bias of the labels" in started.loaded
    assert torch.equal(model.label_bias, clipvid.from_pretrained(trained).label_bias)


def test_a_drawn_split_keeps_the_labels(several: Path, tmp_path: Path) -> None:
    words = options(several, tmp_path, "--training.epochs=1", "--data.val=null", "--training.mixup=0.5")
    command.main([*words, "--data.train=train.csv"])
    train = load_manifest(several, "train.csv", None, allow_outside_root=True)
    rows = {f"train/{row['path']}": row["labels"] for row in csv.DictReader((tmp_path / "split.csv").open())}
    assert rows == {sample.path: train.label_text(sample) for sample in train.samples}


@pytest.mark.slow
def test_selection_and_groups_work_with_several_labels(several: Path, tmp_path: Path) -> None:
    more = ["--selection.folds=2", "--training.epochs=1", "--training.class_weights=balanced"]
    command.main(options(several, tmp_path / "run", *more))
    record = json.loads((tmp_path / "run" / "selection.json").read_text())
    assert record["metric"] == "map"
    assert 0 < record["adapters"]["value"] < 1
    groups = ["--data.protocol=leave_one_group_out", r"--data.group_pattern=/(ball|star)_", "--training.epochs=1"]
    command.main(options(several, tmp_path / "groups", *groups))
    figures = json.loads((tmp_path / "groups" / "metrics.json").read_text())
    assert figures["map"]["count"] == 32


def test_manifests_of_one_and_several_labels_are_not_joined(several: Path, world: Path) -> None:  # noqa: F811
    manifest = load_manifest(several, "train.csv", None, allow_outside_root=True)
    one = Manifest(load_manifest(world, "val.csv").samples, manifest.classes, manifest.root)
    with pytest.raises(ManifestError, match="several labels per video"):
        manifest.joined(one)
