"""`clipvid evaluate` on real files: output, interruption and resume, on one process and several."""

import csv
import json
import re
import shutil
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import posix_only, shake
from processes import Worker, all_end_well, together
from sklearn.metrics import log_loss, top_k_accuracy_score
from test_report import ParsedPage

from clipvid.commands import evaluate as command
from clipvid.data.preprocessing import Preprocessing
from clipvid.data.reader import open_video
from clipvid.data.sampling import uniform_indices
from clipvid.data.synthetic.world import WorldConfig, build_world
from clipvid.data.transforms import eval_transform
from clipvid.evaluation.loop import PredictionCache, ViewScores
from clipvid.evaluation.results import read_predictions
from clipvid.hub.loading import from_pretrained

WORLD = WorldConfig(
    objects=("ball", "star"), motions=("horizontal",), num_frames=6, image_size=32,
    train_per_class=5, val_per_class=3, test_per_class=0,
)  # fmt: skip
LABELS = ["ball moving left", "ball moving right", "star moving left", "star moving right"]
CONTROLS = ["reversed", "shuffled", "single", "bag"]
RECIPE = {
    "training": {"epochs": 1, "per_device_train_batch_size": 4, "report_to": "none"},
    "optim": {"lr": 0.01},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_world(WORLD, tmp_path_factory.mktemp("world"), progress=False)


@pytest.fixture(scope="module")
def model_folder(make_model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a model with ILA whose adapters depend on the order of frames."""
    model = make_model("ila", labels=LABELS)
    for seed, module in enumerate(model.encoder.adapters()):
        shake(module, 0.1, seed)
    folder = tmp_path_factory.mktemp("model") / "ila"
    model.save_pretrained(folder)
    return folder


def arguments(world: Path, model: str | Path, output: Path, **changed: object) -> list[str]:
    fixed = {
        "data.root": world,
        "model": model,
        "num_frames": 3,
        "data.num_workers": 0,
        "batch_size": 5,
        "hardest_clips": 2,
        "output_dir": output,
    }
    named = {key.replace("__", "."): value for key, value in changed.items()}
    return [f"--{key}={value}" for key, value in (fixed | named).items()]


def evaluate(world: Path, model: str | Path, output: Path, **changed: object) -> dict:
    command.main(arguments(world, model, output, **changed))
    return json.loads((output / "metrics.json").read_text())


def rows(output: Path, **columns: str) -> list[dict]:
    actual = pq.read_table(output / "predictions.parquet").to_pylist()
    return [row for row in actual if all(row[key] == value for key, value in columns.items())]


def scores(actual: list[dict]) -> torch.Tensor:
    return torch.tensor([row["scores"] for row in actual])


@pytest.fixture(scope="module")
def evaluated(world: Path, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("evaluated")
    evaluate(world, model_folder, output, data__test_clips=2, sweep="[0.0,0.5,1.0]")
    return output


def test_predictions_have_row_per_video_and_condition(evaluated: Path, world: Path) -> None:
    actual = rows(evaluated)
    conditions = ["forward", *CONTROLS, "zero-shot", "alpha=0", "alpha=0.5", "alpha=1"]
    assert list(dict.fromkeys(row["condition"] for row in actual)) == conditions
    for condition in conditions:
        own = [row for row in actual if row["condition"] == condition]
        assert [row["index"] for row in own] == list(range(12))
        assert all((world / row["path"]).is_file() and LABELS[row["label"]] == row["class"] for row in own)
        views = 6 if condition == "bag" else 2
        logits = torch.tensor([row["view_logits"] for row in own])
        assert logits.shape == (12, views, 4)
        torch.testing.assert_close(scores(own), logits.softmax(-1).mean(1))


def test_figures_match_rows(evaluated: Path) -> None:
    metrics = json.loads((evaluated / "metrics.json").read_text())
    measured = {"forward": metrics, "zero-shot": metrics["zero_shot"]} | metrics["controls"]
    for condition, figures in measured.items():
        own = rows(evaluated, condition=condition)
        labels = [row["label"] for row in own]
        assert figures["top1"]["value"] == pytest.approx(top_k_accuracy_score(labels, scores(own), k=1))
        assert figures["nll"] == pytest.approx(log_loss(labels, scores(own).double()), rel=1e-4)
        assert {"pairs", "object", "by_pair", "mean_class", "ece"} <= figures.keys()
    own = rows(evaluated, condition="forward")
    logits, labels = torch.tensor([row["view_logits"] for row in own]), torch.tensor([row["label"] for row in own])
    by_view = [(logits[:, view].argmax(1) == labels).double().mean() for view in range(2)]
    assert [view["value"] for view in metrics["by_view"]] == pytest.approx([float(share) for share in by_view])
    assert [point["alpha"] for point in metrics["sweep"]] == [0, 0.5, 1]
    assert set(metrics["intervals"]) == {"mean_class", "nll", "ece"}


def test_sweep_ends_equal_zero_shot_and_model(evaluated: Path) -> None:
    assert [row["scores"] for row in rows(evaluated, condition="alpha=0")] == [
        row["scores"] for row in rows(evaluated, condition="zero-shot")
    ]
    assert [row["scores"] for row in rows(evaluated, condition="alpha=1")] == [
        row["scores"] for row in rows(evaluated, condition="forward")
    ]
    assert rows(evaluated, condition="zero-shot")[0]["scores"] != rows(evaluated, condition="forward")[0]["scores"]


def test_report_is_complete_and_self_contained(evaluated: Path) -> None:
    html = (evaluated / "report.html").read_text()
    assert "Why these answers" not in html  # a sweep leaves other weights in the model
    page = ParsedPage(html)
    headings = ["Results", "Accuracy by motion pair", "More figures", "Gains by class", "Calibration"]
    headings += ["Weight-space ensembling", "Views", "Clips", "Confusion matrices", "Details"]
    assert re.findall("<h2>(.*?)</h2>", html) == headings
    for line in ("zero-shot CLIP", "on reversed clips", "on shuffled clips", "first frame, repeated", "bag of frames"):
        assert line in page.text
    assert (html.count("data:image/png"), html.count("data:image/svg+xml")) == (2, 5)
    assert "http://" not in html
    assert "https://" not in html
    own = rows(evaluated, condition="forward")
    worst = min(own, key=lambda row: row["scores"][row["label"]])
    assert worst["path"] in page.text


def test_plain_clip_ignores_order(world: Path, clip_folder: Path, tmp_path: Path, evaluated: Path) -> None:
    metrics = evaluate(world, f"local-dir:{clip_folder}", tmp_path, data__test_clips=2, templates="none")
    assert "zero_shot" not in metrics
    forward = scores(rows(tmp_path, condition="forward"))
    for order in ("reversed", "shuffled"):
        torch.testing.assert_close(scores(rows(tmp_path, condition=order)), forward)
    assert forward.tolist() == scores(rows(evaluated, condition="zero-shot")).tolist()
    model_s = scores(rows(evaluated, condition="forward"))
    assert not torch.allclose(scores(rows(evaluated, condition="reversed")), model_s, atol=1e-3)


def test_the_bag_of_frames_is_each_frame_alone(world: Path, model_folder: Path, tmp_path: Path) -> None:
    evaluate(world, model_folder, tmp_path / "bag", controls="[bag]")
    model, row = from_pretrained(model_folder), rows(tmp_path / "bag", condition="bag")[4]
    with open_video(world / row["path"]) as video:
        frames = video.read(uniform_indices(len(video), 3)).permute(0, 3, 1, 2)
    clip = eval_transform(model.image_size)(frames)
    with torch.no_grad():
        alone = torch.stack([model(frame[None, None]).logits[0] for frame in clip])
    torch.testing.assert_close(torch.tensor(row["view_logits"]), alone, atol=1e-4, rtol=1e-4)


def test_average_of_logits(world: Path, model_folder: Path, tmp_path: Path) -> None:
    evaluate(world, model_folder, tmp_path, data__test_clips=3, average="logits", controls="[]", zero_shot=False)
    for row in rows(tmp_path):
        expected = torch.tensor(row["view_logits"]).mean(0).softmax(-1)
        torch.testing.assert_close(torch.tensor(row["scores"]), expected)


def test_alpha_zero_is_the_zero_shot_model(world: Path, model_folder: Path, tmp_path: Path) -> None:
    evaluate(world, model_folder, tmp_path, alpha=0.0, controls="[]")
    forward, zero_shot = (scores(rows(tmp_path, condition=name)) for name in ("forward", "zero-shot"))
    assert forward.tolist() == zero_shot.tolist()


def test_new_classes_are_reported(world: Path, make_model, tmp_path: Path) -> None:
    model = make_model("ila", labels=["Ball_moving_left", "walking"])
    model.save_pretrained(tmp_path / "model")
    actual = evaluate(world, tmp_path / "model", tmp_path / "out", controls="[]", zero_shot=False)["overlap"]
    assert (actual["trained_on"], actual["asked"], actual["shared"]) == (2, 4, ["ball moving left"])
    assert actual["unseen_top1"]["count"] == 9
    assert "Classes that were trained on" in (tmp_path / "out/report.html").read_text()


def test_hardest_clips_are_explained(world: Path, model_folder: Path, tmp_path: Path) -> None:
    evaluate(world, model_folder, tmp_path, controls="[]", zero_shot=False)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    section = html.split("<h2>Why these answers</h2>")[1].split("</section>")[0]
    own = rows(tmp_path, condition="forward")
    worst = min(own, key=lambda row: row["scores"][row["label"]])
    answer = LABELS[max(range(len(LABELS)), key=lambda label: worst["scores"][label])]
    assert f"<summary>{LABELS[worst['label']]}, answered {answer}</summary>" in section
    assert section.count("<details") == 2
    assert section.count("<img") == 2 * 3  # clips and frames
    assert f"rather than “{LABELS[worst['label']]}”" in section


def test_class_overlap_is_reported(world: Path, make_model, tmp_path: Path) -> None:
    make_model("ila", labels=[*LABELS, "walking"]).save_pretrained(tmp_path / "model")
    actual = evaluate(world, tmp_path / "model", tmp_path / "out", controls="[]", zero_shot=False)["overlap"]
    assert (actual["trained_on"], actual["asked"], actual["shared"]) == (5, 4, LABELS)
    assert "unseen_top1" not in actual


def test_repaired_video_is_evaluated_again(world: Path, model_folder: Path, tmp_path: Path) -> None:
    videos = shutil.copytree(world, tmp_path / "world")
    broken = next((videos / "val").rglob("*.mp4"))
    content = broken.read_bytes()
    broken.write_bytes(content[:100])
    metrics = evaluate(videos, model_folder, tmp_path / "out", controls="[]")
    assert (metrics["unreadable"], metrics["top1"]["count"], metrics["top5"]["value"]) == (1, 12, 11 / 12)
    page = ParsedPage((tmp_path / "out/report.html").read_text(encoding="utf-8"))
    assert "1 of 12 videos could not be read." in page.text
    assert broken.relative_to(videos).as_posix() in page.words
    assert "NLL of the readable videos" in page.text
    assert "top-5" not in page.text
    broken.write_bytes(content)
    assert evaluate(videos, model_folder, tmp_path / "out", controls="[]")["unreadable"] == 0
    assert "could not be read" not in (tmp_path / "out/report.html").read_text(encoding="utf-8")


def test_different_sampling_is_reported(world: Path, make_model, tmp_path: Path, capsys) -> None:
    model = make_model("ila", labels=LABELS)
    model.preprocessing = Preprocessing("dense", 2, "squash")
    model.save_pretrained(tmp_path / "model")
    evaluate(world, tmp_path / "model", tmp_path / "out", controls="[]")
    assert "was trained on clips sampled as {'sampling': {'name': 'dense', 'stride': 2}" in capsys.readouterr().out
    as_trained = {"data__sampling": "dense", "data__stride": 2, "data__resize": "squash"}
    evaluate(world, tmp_path / "model", tmp_path / "as_trained", controls="[]", **as_trained)
    assert "warning" not in capsys.readouterr().out
    evaluate(world, tmp_path / "model", tmp_path / "other", controls="[]", num_frames=5, **as_trained)
    assert "warning: num_frames=5 is for a plain CLIP; " in capsys.readouterr().out


def test_training_videos_and_missing_classes_are_reported(world: Path, model_folder: Path, tmp_path: Path, capsys):
    groups = {"controls": "[]", "data__group_pattern": "(train|val)/"}
    evaluate(world, model_folder, tmp_path / "pooled", protocol="leave_one_group_out", **groups)
    assert "is measured on data.train, too" in capsys.readouterr().out
    classes = [row["name"] for row in csv.DictReader((world / "classes.csv").open())][:3]
    rows = [line for line in csv.DictReader((world / "val.csv").open()) if int(line["label"]) < 3]
    text = "path,label\n" + "".join(f"{row['path']},{classes[int(row['label'])]}\n" for row in rows)
    (tmp_path / "few.csv").write_text(text)
    few = {"controls": "[]", "data__val": tmp_path / "few.csv", "data__classes": "null", "data__train": "none.csv"}
    evaluate(world, model_folder, tmp_path / "few", data__allow_outside_root=True, **few)
    out = capsys.readouterr().out
    assert "warning: only the 3 classes of the videos compete, out of 4 that" in out
    assert "is measured on data.train" not in out
    evaluate(world, model_folder, tmp_path / "whole", controls="[]")
    assert "warning" not in capsys.readouterr().out


def run_evaluate(args: list[str]) -> None:
    from clipvid.commands import run

    run("evaluate", args)


def figures_of(output: Path) -> dict:
    metrics = json.loads((output / "metrics.json").read_text())
    metrics.pop("processes")
    metrics.pop("config")
    return metrics


@pytest.mark.slow
def test_compiled_model_is_equal_up_to_rounding(world: Path, model_folder: Path, tmp_path: Path) -> None:
    actual = {}
    for compiled in (False, True):
        evaluate(world, model_folder, tmp_path / f"{compiled}", controls="[]", torch_compile=compiled)
        actual[compiled] = scores(rows(tmp_path / f"{compiled}", condition="forward"))
    torch.testing.assert_close(actual[True], actual[False], atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_number_of_processes_does_not_change_scores(
    world: Path, model_folder: Path, tmp_path: Path, count: int
) -> None:
    changed = {"controls": "[shuffled]", "data__test_clips": 2, "batch_size": 2, "hardest_clips": 0}
    val = (world / "val.csv").read_text().splitlines()
    (world / "eleven.csv").write_text("\n".join(val[:-1]) + "\n")  # 11 videos: 6 batches, the last of one
    changed["data__val"] = "eleven.csv"
    for processes in (1, count):
        args = arguments(world, model_folder, tmp_path / str(processes), **changed)
        all_end_well(together(processes, tmp_path / f"logs_{processes}", run_evaluate, args))
    assert rows(tmp_path / str(count)) == rows(tmp_path / "1")
    assert figures_of(tmp_path / str(count)) == figures_of(tmp_path / "1")
    assert json.loads((tmp_path / str(count) / "metrics.json").read_text())["processes"] == count


def kept(output: Path) -> list[Path]:
    return sorted(output.glob("partial/*/batch_*.safetensors"))


@posix_only
def test_killed_evaluation_resumes_from_predictions(world: Path, model_folder: Path, tmp_path: Path) -> None:
    changed = {"data__test_clips": 2, "batch_size": 1, "controls": "[reversed]"}
    evaluate(world, model_folder, tmp_path / "whole", **changed)
    output = tmp_path / "killed"
    worker = Worker(tmp_path / "log", {}, run_evaluate, arguments(world, model_folder, output, **changed))
    while worker.process.is_alive() and len(kept(output)) < 15:
        time.sleep(0.001)
    worker.signal("SIGKILL")
    worker.process.join()
    assert not (output / "metrics.json").exists()
    assert len(kept(output)) >= 15
    command.main(arguments(world, model_folder, output, **changed))
    assert rows(output) == rows(tmp_path / "whole")
    assert figures_of(output) == figures_of(tmp_path / "whole")
    assert not (output / "partial").exists()


def test_cache_ignores_damaged_and_outdated_files(world: Path, model_folder: Path, tmp_path: Path) -> None:
    changed = {"controls": "[]", "zero_shot": False, "batch_size": 3}
    evaluate(world, model_folder, tmp_path / "whole", **changed)
    metadata = pq.read_schema(tmp_path / "whole/predictions.parquet").metadata
    (unit,) = json.loads(metadata[b"clipvid"])
    (actual,) = read_predictions(tmp_path / "whole/predictions.parquet").values()
    constant = actual._replace(logits=torch.zeros_like(actual.logits).index_fill(2, torch.tensor([3]), 9.0))
    folder = tmp_path / "out/partial" / unit["key"][:16]
    for start, key in ((0, unit["key"]), (3, "other weights"), (6, unit["key"])):
        PredictionCache(folder, key).write(ViewScores(*(column[start : start + 3] for column in constant)))
    damaged = kept(tmp_path / "out")[2]
    damaged.write_bytes(damaged.read_bytes()[:100])
    evaluate(world, model_folder, tmp_path / "out", **changed)
    mine, whole = rows(tmp_path / "out"), rows(tmp_path / "whole")
    assert (scores(mine[:3]).argmax(1) == 3).all()
    assert mine[3:] == whole[3:]


def test_finished_evaluation_is_reused_unless_weights_change(world: Path, make_model, tmp_path: Path, capsys) -> None:
    changed = {"controls": "[]", "zero_shot": False}
    for seed in (0, 1):
        model = make_model("ila", labels=LABELS)
        for module in model.encoder.adapters():
            shake(module, 0.1, seed)
        model.save_pretrained(tmp_path / "model")
        evaluate(world, tmp_path / "model", tmp_path / "out", **changed)
        actual = rows(tmp_path / "out")
        assert "forward: 12 videos" in capsys.readouterr().out
        evaluate(world, tmp_path / "model", tmp_path / "out", **changed)
        assert "forward: 12 videos" not in capsys.readouterr().out
        assert rows(tmp_path / "out") == actual


def test_finished_evaluation_is_extended(world: Path, model_folder: Path, tmp_path: Path, capsys) -> None:
    stages = [
        ({"controls": "[reversed]", "zero_shot": False}, ["forward", "reversed"]),
        ({"controls": "[bag]", "zero_shot": False, "sweep": "[0.5]"}, ["bag", "alpha=0.5"]),
        ({"controls": "[]", "sweep": "[0.25]"}, ["zero-shot", "alpha=0.25"]),
        ({"controls": "[]", "zero_shot": False}, []),
        ({"controls": "[bag,reversed]", "sweep": "[0.25,0.5]"}, []),
    ]
    kept: dict[str, list[dict]] = {}
    for options, measured in stages:
        metrics = evaluate(world, model_folder, tmp_path, hardest_clips=0, **options)
        said = capsys.readouterr().out
        assert re.findall(r"all, (\S+): 12 videos", said) == measured
        actual = {name: rows(tmp_path, condition=name) for name in [*kept, *measured]}
        assert all(actual[name] == own for name, own in kept.items())
        kept = actual
        assert len(rows(tmp_path)) == 12 * len(kept)
        orders = [name for name in kept if name in CONTROLS]
        assert sorted(metrics["controls"]) == sorted(orders) == sorted(metrics["config"]["controls"])
        assert ("zero_shot" in metrics) == ("zero-shot" in kept)


@pytest.mark.parametrize("change", [{"model": "other"}, {"name": "A & B"}, {"data__test_clips": 2}])
def test_folder_of_another_evaluation_suggests_a_folder(
    world: Path, model_folder: Path, tmp_path: Path, change: dict
) -> None:
    options = {"controls": "[]", "zero_shot": False, "hardest_clips": 0}
    evaluate(world, model_folder, tmp_path / "out", **options)
    before = (tmp_path / "out/metrics.json").read_bytes()
    model = shutil.copytree(model_folder, tmp_path / "other") if "model" in change else model_folder
    others = {name: value for name, value in change.items() if name != "model"}
    words = arguments(world, model, tmp_path / "out", **options | others)
    with pytest.raises(FileExistsError, match="contains a run with another config") as refusal:
        command.main(words)
    assert (tmp_path / "out/metrics.json").read_bytes() == before
    proposed = re.search(r"For example: (--output_dir \S+)$", str(refusal.value))
    assert proposed
    command.main([*words, *proposed[1].split()])


@pytest.mark.parametrize(
    ("model", "changed"),
    [("no/such folder", {}), ("ViT-Q-77", {}), (None, {"descriptions": "absent.json"}), (None, {"templates": "[]"})],
    ids=["folder", "name", "descriptions", "templates"],
)
def test_an_evaluation_that_cannot_start_leaves_no_folder(
    world: Path, model_folder: Path, tmp_path: Path, model: str | None, changed: dict
) -> None:
    output = tmp_path / "out"
    with pytest.raises((ValueError, OSError, RuntimeError)):
        evaluate(world, model or model_folder, output, controls="[]", **changed)
    assert not output.exists()
    evaluate(world, model_folder, output, controls="[]")


@pytest.mark.parametrize(
    ("option", "value", "repeated"),
    [("controls", "[bag,single,bag]", "bag"), ("sweep", "[0.5,0.25,0.5]", "0.5"), ("sweep", "[0.5,0.50000001]", "0.5")],
)
def test_repeated_controls_and_alphas_are_refused(
    world: Path, tmp_path: Path, capsys, option: str, value: str, repeated: str
) -> None:
    with pytest.raises((SystemExit, ValueError)) as refusal:
        command.main(arguments(world, "tiny", tmp_path, **{option: value}))
    assert f"{option}: {repeated} is repeated" in f"{refusal.value}{capsys.readouterr().err}"
    assert not list(tmp_path.iterdir())


def recipe(clip_folder: Path, **model: object) -> str:
    own = {"backbone": f"local-dir:{clip_folder}", "adapter": {"name": "ila", "hidden": 16}, "num_frames": 3}
    return json.dumps(RECIPE | {"model": own | model})


def test_few_shot_from_recipe_to_figures(world: Path, clip_folder: Path, tmp_path: Path) -> None:
    options = {"recipe": recipe(clip_folder), "controls": "[]", "hardest_clips": 0}
    protocol = "{name: few_shot, shots: [1, 2], seeds: [0, 1]}"
    metrics = evaluate(world, "unused", tmp_path, protocol=protocol, **options)
    groups = ["K=1 seed=0", "K=1 seed=1", "K=2 seed=0", "K=2 seed=1"]
    assert list(metrics["groups"]) == groups
    values = [metrics["groups"][name]["top1"]["value"] for name in groups]
    assert metrics["few_shot"]["K=1"]["values"] == values[:2]
    assert metrics["few_shot"]["K=2"]["mean"] == pytest.approx(sum(values[2:]) / 2)
    assert json.loads((tmp_path / "k2_seed1/run.json").read_text())["manifests"].keys() == {
        "train", "val", "templates", "model.backbone"
    }  # fmt: skip
    zero_shot = [rows(tmp_path, group=name, condition="zero-shot") for name in groups]
    assert scores(zero_shot[0]).tolist() == scores(zero_shot[3]).tolist()
    trained = [scores(rows(tmp_path, group=name, condition="forward")) for name in groups]
    assert not torch.equal(trained[0], trained[1])
    assert "K=2" in ParsedPage((tmp_path / "report.html").read_text()).text


def test_base_to_novel_from_recipe_to_figures(world: Path, clip_folder: Path, tmp_path: Path) -> None:
    options = {"recipe": recipe(clip_folder), "controls": "[reversed]"}
    metrics = evaluate(world, "unused", tmp_path, protocol="{name: base_to_novel, shots: 3}", **options)
    base, novel = (metrics["groups"][name] for name in ("base", "novel"))
    assert list(base["by_class"]) == LABELS[:2]
    assert list(novel["by_class"]) == LABELS[2:]
    assert novel["overlap"]["shared"] == []
    assert novel["pairs"]["count"] == 6
    actual = metrics["base_to_novel"]["harmonic_mean"]["mean"]
    low, high = sorted((base["top1"]["value"], novel["top1"]["value"]))
    assert low <= actual <= high or 0 in (low, high)
    assert sorted(path.name for path in tmp_path.glob("base_*")) == ["base_seed0"]
    assert (
        evaluate(world, "unused", tmp_path, protocol="{name: base_to_novel, shots: 3}", **options)["groups"]
        == metrics["groups"]
    )


def test_leave_one_group_out_pools_predictions(world: Path, clip_folder: Path, tmp_path: Path) -> None:
    options = {"recipe": recipe(clip_folder), "controls": "[]", "data__group_pattern": "(train|val)/"}
    metrics = evaluate(world, "unused", tmp_path, protocol="leave_one_group_out", **options)
    assert metrics["top1"]["count"] == 32
    assert len({row["path"] for row in rows(tmp_path, condition="forward")}) == 32


def test_suite_table_survives_failed_evaluations(
    world: Path, clip_folder: Path, model_folder: Path, tmp_path: Path
) -> None:
    data = {"root": str(world), "num_workers": 0}
    files = {
        "clip": {"model": f"local-dir:{clip_folder}", "num_frames": 3},
        "ila": {"model": str(model_folder)},
        "world": {"data": data, "hardest_clips": 0},
        "few": {"data": data, "protocol": {"name": "base_to_novel"}, "controls": []},
        "absent": {"data": data | {"root": str(tmp_path / "nowhere")}},
    }
    for name, content in files.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    suite = {
        "models": {name: str(tmp_path / f"{name}.yaml") for name in ("clip", "ila")},
        "protocols": {name: str(tmp_path / f"{name}.yaml") for name in ("world", "absent", "few")},
        "output_dir": str(tmp_path / "suite"),
    }
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite, sort_keys=False))
    with pytest.raises(
        RuntimeError, match=r"2 of 6 trials failed; the results of the others are kept:\n  clip under abs"
    ):
        command.main(["--suite", str(tmp_path / "suite.yaml")])
    lines = (tmp_path / "suite/table.md").read_text().splitlines()
    top1 = json.loads((tmp_path / "suite/world/ila/metrics.json").read_text())["top1"]
    head = "| world | top-1 | mean class | NLL | ECE | motion pairs | top-1, reversed | top-1, shuffled |"
    assert lines[0].startswith(head)
    (line,) = [line for line in lines if line.startswith("| ila") and "(" in line]
    assert f"| {top1['value']:.2f} ({top1['low']:.2f}-{top1['high']:.2f}) |" in line
    assert "| few | base | novel | harmonic mean |" in lines
    assert lines[lines.index("| absent | top-1 |") + 2] == "| clip | - |"


def write_list(world: Path, name: str, content: str) -> str:
    (world / name).write_text(content)
    return name


def test_empty_set_one_class_and_equal_texts(world: Path, model_folder: Path, tmp_path: Path) -> None:
    header, *lines = (world / "val.csv").read_text().splitlines()
    empty = write_list(world, "empty.csv", f"{header}\n")
    with pytest.raises(ValueError, match=r"empty|no videos|nothing"):
        evaluate(world, model_folder, tmp_path / "empty", data__val=empty)
    place = header.split(",").index("path")
    listed = "".join(f"{line.split(',')[place]},0\n" for line in lines[:3])
    options = {"data__val": write_list(world, "one.csv", f"path,label\n{listed}"), "controls": "[]"}
    one = write_list(world, "one.txt", "a ball\n")
    metrics = evaluate(world, model_folder, tmp_path / "one", data__classes=one, **options)
    assert (metrics["top1"]["value"], metrics["ece"], metrics["nll"], metrics["mean_class"]) == (1, 0, 0, 1)
    same = write_list(world, "same.txt", "a ball\nA_Ball\n")
    with pytest.raises(ValueError, match="have the same text features"):
        evaluate(world, model_folder, tmp_path / "same", data__classes=same, **options)


def test_a_thousand_classes_fit(world: Path, clip_folder: Path, tmp_path: Path) -> None:
    names = write_list(world, "thousand.txt", "".join(f"class number {i}\n" for i in range(1000)))
    header, *lines = (world / "val.csv").read_text().splitlines()
    place = header.split(",").index("path")
    val = write_list(world, "many.csv", "path,label\n" + "".join(f"{x.split(',')[place]},999\n" for x in lines))
    options = {"data__classes": names, "data__val": val, "controls": "[]", "hardest_clips": 1}
    metrics = evaluate(world, f"local-dir:{clip_folder}", tmp_path, **options)
    assert metrics["by_class"]["class number 999"] == metrics["top1"]["value"]
    assert "confusion" not in metrics
    assert (tmp_path / "metrics.json").stat().st_size < 300_000
    assert (tmp_path / "report.html").stat().st_size < 1_000_000


def test_nan_scores_error_names_the_videos(world: Path, make_model, tmp_path: Path) -> None:
    model = make_model("ila", labels=LABELS)
    next(iter(model.encoder.adapters()[0].parameters())).data.fill_(torch.finfo(torch.float32).max)  # overflows
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"NaN or infinity for 12 of 12 videos, such as \['"):
        evaluate(world, tmp_path / "model", tmp_path / "out", controls="[]")
    assert not (tmp_path / "out/metrics.json").exists()


def test_best_model_on_test_videos_is_refused(world: Path, tmp_path: Path, capsys) -> None:
    best = json.dumps({"training": {"load_best_model_at_end": True}})
    with pytest.raises((SystemExit, ValueError)):
        command.main(arguments(world, "tiny", tmp_path, recipe=best))
    with pytest.raises((SystemExit, ValueError)):
        command.main(arguments(world, "tiny", tmp_path, alpha=1.5))
    assert not (tmp_path / "metrics.json").exists()
