"""Inspection of videos: copies, labels, odd clips, the files that it writes, and hostile input."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.linear_model import Ridge

from clipvid import InputError
from clipvid.benchmarks.planted_copies import CHANGES, write_copy
from clipvid.commands import run
from clipvid.data.dataset import VideoDataset
from clipvid.data.manifest import load_manifest
from clipvid.data.sampling import FrameSampling
from clipvid.data.synthetic.encoding import write_video
from clipvid.data.transforms import eval_transform
from clipvid.inspection.config import InspectConfig
from clipvid.inspection.duplicates import aligned_residuals, find_duplicates, normalized
from clipvid.inspection.findings import check_labels
from clipvid.inspection.labels import inseparable_pairs, rank_labels
from clipvid.inspection.probes import PENALTIES, _fit, cross_validate, spread_folds
from clipvid.inspection.reading import ResizedFrames, read_clip
from clipvid.inspection.run import Inspection, run_inspection
from clipvid.inspection.signatures import find_bars
from clipvid.inspection.tasks import ProbeTask
from clipvid.inspection.time import BAG, ORDERED

FRAMES = 24


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("CLIPVID_CACHE", str(folder))
    return folder


def moving_square(seed: int, frames: int = FRAMES, color: int = 255, scene: int | None = None) -> np.ndarray:
    """Return a clip of a square that crosses a random background: uint8 [T, 64, 64, 3]."""
    rng = np.random.default_rng(seed)
    background = np.random.default_rng(seed if scene is None else scene).integers(40, 200, (8, 8, 3)).repeat(8, 0)
    clip = np.repeat(background.repeat(8, 1)[None], frames, 0).astype(np.uint8)
    start, end = rng.integers(4, 44, 2), rng.integers(4, 44, 2)
    for number, share in enumerate(np.linspace(0, 1, frames)):
        top, left = (start + share * (end - start)).astype(int)
        clip[number, top : top + 16, left : left + 16] = color
    return clip


def two_classes(folder: Path, per_class: int, seed: int = 0) -> Path:
    """Write clips of white and of black squares, and a list of them."""
    rows = []
    for label, color in (("white", 255), ("black", 0)):
        for index in range(per_class):
            name = f"{label}/{index:02}.mp4"
            write_video(folder / name, moving_square(seed + index + 100 * (color > 0), color=color), 8)
            rows.append(f"{name},{label}\n")
    (folder / "list.csv").write_text("path,label\n" + "".join(rows))
    return folder


def inspect(path: object, tmp_path: Path, **options: object) -> Inspection:
    settings = {"num_workers": 0, "num_frames": 4, "output_dir": str(tmp_path / "out"), "examples": 2} | options
    return run_inspection(InspectConfig(path=str(path), **settings), enabled=False)  # type: ignore[arg-type]


# Copies


def test_each_kind_of_copy_is_detected_and_named(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    for index in range(12):
        write_video(videos / f"{index:02}.mp4", moving_square(index, 48), 8)
    for index, kind in enumerate(CHANGES):
        write_copy(videos / f"{index:02}.mp4", videos / f"copy_{index:02}.mp4", kind)
    result = inspect(videos, tmp_path, num_frames=8)
    named = {}
    for copy in result.findings.duplicates:
        names = sorted(result.clips.name(index) for index in (copy.first, copy.second))
        named[tuple(names)] = copy.changes
    kinds = {(f"{index:02}.mp4", f"copy_{index:02}.mp4"): kind for index, kind in enumerate(CHANGES)}
    assert named.keys() == kinds.keys()
    assert all(changes == (() if kinds[pair] == "copied" else (kinds[pair],)) for pair, changes in named.items())


def test_different_clips_of_one_scene_are_not_copies(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    for index in range(10):
        write_video(videos / f"{index}.mp4", moving_square(index, scene=7), 8)
    assert inspect(videos, tmp_path, num_frames=8).findings.duplicates == []


def test_residual_equals_slow_reference() -> None:
    frames = normalized(torch.randint(0, 255, (2, 12, 4, 4), generator=torch.Generator().manual_seed(0)).byte())
    first, second = frames
    whole = torch.stack([(a - b).square().sum() for a, b in zip(first, second, strict=True)]).mean()
    assert aligned_residuals(first[None], second[None], torch.tensor([1.0])).item() == pytest.approx(whole.item())
    kept, values = 9, []
    for start in range(12 - kept + 1):
        places = [int(start + (row + 0.5) * kept / 12) for row in range(12)]
        near = [range(max(place - 1, 0), min(place + 2, 12)) for place in places]
        rows = [min((first[i] - second[j]).square().sum() for j in js) for i, js in enumerate(near)]
        values.append(torch.stack(rows).mean())
    result = aligned_residuals(first[None], second[None], torch.tensor([kept / 12]))
    assert result.item() == pytest.approx(min(values).item(), rel=1e-5)


def test_part_of_a_clip_aligns_where_it_was_cut(tmp_path: Path) -> None:
    clip = moving_square(3, 48)
    write_video(tmp_path / "whole.mp4", clip, 8)
    write_video(tmp_path / "part.mp4", clip[20:44], 8)
    read = [read_clip(tmp_path / name, None, None, 8, lambda frame: frame) for name in ("whole.mp4", "part.mp4")]
    copies = find_duplicates(torch.stack([signature for _, signature, _ in read]), [facts for *_, facts in read])
    assert [copy.changes for copy in copies] == [("trimmed",)]


def test_fixed_list_keeps_one_copy_and_that_of_val(tmp_path: Path) -> None:
    root = two_classes(tmp_path / "train", 6)
    for name in ("white", "black"):
        (tmp_path / "val" / name).mkdir(parents=True)
    shutil.copy(root / "white/00.mp4", tmp_path / "val/white/leak.mp4")
    shutil.copy(root / "black/01.mp4", root / "black/again.mp4")
    for index, name in enumerate(("white", "black")):
        write_video(tmp_path / f"val/{name}/own.mp4", moving_square(50 + index, color=255 * (1 - index)), 8)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.mp4")}
    result = inspect(root, tmp_path, val=str(tmp_path / "val"), fix=str(tmp_path / "clean.csv"), drop=["duplicate"])
    assert len(result.findings.across(result.clips)) == 1
    rows = list(csv.DictReader((tmp_path / "clean.csv").open()))
    paths = [row["path"] for row in rows]
    assert "val/white/leak.mp4" in paths
    assert "train/white/00.mp4" not in paths
    assert ("train/black/01.mp4" in paths) != ("train/black/again.mp4" in paths)
    assert len(rows) == len(result.clips) - 2
    assert {row["split"] for row in rows} == {"train", "val"}
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.mp4")} == before
    # The list is one that the readers of lists accept.
    again = inspect(tmp_path / "clean.csv", tmp_path)
    assert again.findings.duplicates == []


def test_frames_equal_those_of_the_data_set(tmp_path: Path) -> None:
    root = two_classes(tmp_path / "videos", 1)
    manifest = load_manifest(root, "list.csv", None)
    transform = eval_transform(32)
    dataset = VideoDataset(manifest, FrameSampling("uniform", 4), transform, seed=0, training=False)
    frames, *_ = read_clip(root / manifest.samples[0].path, None, None, 4, transform)
    torch.testing.assert_close(frames, dataset[0, 0]["frames"][0], rtol=0, atol=0)


def test_large_frames_are_resized_one_by_one() -> None:
    pictures = [np.full((40, 60, 3), number, dtype=np.uint8) for number in range(5)]
    sizes: list[int] = []

    def transform(frames: torch.Tensor) -> torch.Tensor:
        sizes.append(len(frames))
        return frames[..., :2, :2]

    for limit, expected in ((0, [1, 1, 1, 1, 1]), (15_000, [3, 2]), (1 << 20, [5])):
        sizes.clear()
        frames = ResizedFrames(transform, limit)
        for number, picture in enumerate(pictures):
            frames.add(number, picture)
        assert frames.stacked([4, 0, 0])[:, 0, 0, 0].tolist() == [4, 0, 0]
        assert sizes == expected


def test_damaged_stored_clip_is_read_again(tmp_path: Path, cache: Path) -> None:
    videos = tmp_path / "videos"
    for index in range(3):
        write_video(videos / f"{index}.mp4", moving_square(index), 8)
    first = inspect(videos, tmp_path).readings
    files = sorted((cache / "inspection").rglob("*.safetensors"))
    assert len(files) == 3
    content = torch.arange(7, dtype=torch.uint8)
    save_file({"features": content}, files[0], metadata={"shapes": "[[4, 512], [12, 16, 16]]", "facts": "{}"})
    files[1].write_bytes(b"damaged")
    again = inspect(videos, tmp_path).readings
    assert (first.computed, again.computed) == (3, 2)
    assert torch.equal(first.features, again.features)
    assert torch.equal(first.signatures, again.signatures)
    assert first.facts == again.facts


# Odd clips


def test_odd_clips_are_flagged(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    for index in range(6):
        write_video(videos / f"{index}.mp4", moving_square(index), 8)
    framed = np.zeros((FRAMES, 96, 64, 3), dtype=np.uint8)
    framed[:, 16:80] = moving_square(10)
    write_video(videos / "bars.mp4", framed, 8)
    write_video(videos / "static.mp4", moving_square(11)[:1].repeat(FRAMES, 0), 8)
    write_video(videos / "dark.mp4", np.full((FRAMES, 64, 64, 3), 3, dtype=np.uint8), 8)
    write_video(videos / "short.mp4", moving_square(12, 3), 8)
    write_video(videos / "fast.mp4", moving_square(13, 96), 32)
    result = inspect(videos, tmp_path)
    flags = {(result.clips.name(flag.index), flag.kind) for flag in result.findings.flags}
    assert flags == {
        ("bars.mp4", "bars"), ("static.mp4", "static"), ("dark.mp4", "dark"), ("dark.mp4", "static"),
        ("short.mp4", "short"), ("fast.mp4", "rate"),
    }  # fmt: skip
    detail = next(flag.detail for flag in result.findings.flags if flag.kind == "bars")
    assert detail == "top 17%, bottom 17%"


def test_bars_of_a_dark_clip_are_not_bars() -> None:
    assert find_bars(torch.full((4, 20, 20), 5.0)) == (0, 0, 0, 0)
    frames = torch.zeros(4, 20, 20)
    frames[:, 5:16] = 120.0
    assert find_bars(frames) == (5, 4, 0, 0)


# Probes and labels


@pytest.mark.parametrize("shape", [(40, 6), (10, 30)])
def test_probe_equals_ridge_of_scikit_learn(shape: tuple[int, int]) -> None:
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(shape, generator=rng), torch.randn(shape[0], 3, generator=rng)
    unit = float((x - x.mean(0)).square().sum() / shape[1])
    for penalty, probe in zip(PENALTIES, _fit(x, y, PENALTIES), strict=True):
        expected = Ridge(alpha=penalty * unit).fit(x.numpy(), y.numpy()).predict(x.numpy())
        np.testing.assert_allclose(probe(x).numpy(), expected, atol=1e-4)


def test_folds_keep_groups_whole_and_spread_classes() -> None:
    labels = [label for label in range(4) for _ in range(15)]
    groups = [10 * label + index // 3 for label in range(4) for index in range(15)]
    folds = spread_folds(labels, groups, 5, seed=0)
    assert all(len({fold for fold, own in zip(folds, groups, strict=True) if own == group}) == 1 for group in groups)
    for label in range(4):
        assert sorted(fold for fold, own in zip(folds, labels, strict=True) if own == label) == sorted([*range(5)] * 3)


def test_out_of_fold_scores_do_not_see_the_clip() -> None:
    rng = torch.Generator().manual_seed(1)
    inputs, labels = torch.randn(60, 40, generator=rng), torch.randint(0, 2, (60,), generator=rng)
    folds = torch.arange(60) % 5
    scores = cross_validate(inputs, labels, folds, 2).scores
    assert 0.25 < float((scores.argmax(1) == labels).float().mean()) < 0.75  # noise cannot be learned
    other = cross_validate(inputs, torch.where(folds == 2, 1 - labels, labels), folds, 2).scores
    torch.testing.assert_close(other[folds == 2], scores[folds == 2])


def test_averaged_scores_are_the_mean_over_draws_of_folds() -> None:
    rng = torch.Generator().manual_seed(2)
    labels, groups = torch.arange(3).repeat(20), torch.arange(60) // 2
    features = torch.randn(60, 4, 6, generator=rng)
    features[:, :, 0] += labels[:, None]
    folds = [torch.tensor(spread_folds(labels.tolist(), groups.tolist(), 5, seed)) for seed in (7, 8, 9)]
    task = ProbeTask(list(range(60)), features, labels, folds[0], groups, 3, "group", seed=7)
    inputs, penalty = features.mean(dim=1), task.scores[BAG].penalty
    further = [cross_validate(inputs, labels, own, 3, penalty=penalty).scores for own in folds[1:]]
    expected = torch.stack([task.scores[BAG].scores, *further]).mean(dim=0)
    torch.testing.assert_close(task.averaged_scores(BAG, 3), expected)
    assert not torch.equal(further[0], further[1])


@pytest.mark.parametrize("differ", ["order", "frames"])
def test_labels_are_checked_without_a_probe_that_is_clearly_worse(differ: str) -> None:
    rng = torch.Generator().manual_seed(4)
    labels, groups = torch.arange(2).repeat(30), torch.arange(60)
    features = 0.3 * torch.randn(60, 8, 6, generator=rng)
    course = torch.linspace(-1, 1, 8) if differ == "order" else torch.ones(8)
    features[:, :, 0] += (2.0 * labels - 1)[:, None] * course
    labels[5] = 1 - labels[5]
    folds = torch.tensor(spread_folds(labels.tolist(), groups.tolist(), 5, 0))
    task = ProbeTask(list(range(60)), features, labels, folds, groups, 2, "clip")
    check = check_labels(task)
    names = [ORDERED] if differ == "order" else [BAG, ORDERED]
    scores = torch.stack([task.averaged_scores(name, 5) for name in names]).mean(dim=0)
    assert check.accuracy == float(task.hits(scores).mean()) > 0.9
    assert check.suspects[0].place == 5


def test_given_penalty_is_that_of_all_folds() -> None:
    rng = torch.Generator().manual_seed(3)
    inputs, labels, folds = torch.randn(30, 4, generator=rng), torch.arange(3).repeat(10), torch.arange(30) % 5
    result = cross_validate(inputs, labels, folds, 3, penalty=0.5)
    targets = torch.nn.functional.one_hot(labels, 3).float()
    held = folds == 2
    torch.testing.assert_close(result.scores[held], _fit(inputs[~held], targets[~held], [0.5])[0](inputs[held]))
    assert result.penalty == 0.5


def test_exchanged_labels_are_ranked_first(tmp_path: Path) -> None:
    root = two_classes(tmp_path / "videos", 12)
    text = (root / "list.csv").read_text().replace("white/03.mp4,white", "white/03.mp4,black")
    (root / "list.csv").write_text(text.replace("black/07.mp4,black", "black/07.mp4,white"))
    result = inspect(root / "list.csv", tmp_path)
    check = result.findings.labels
    assert check is not None
    assert {result.clips.sample(own.place).path for own in check.suspects[:2]} == {"white/03.mp4", "black/07.mp4"}
    assert check.is_trusted


def test_label_against_a_sure_probe_is_flagged_and_a_doubtful_one_is_not() -> None:
    labels = torch.arange(3).repeat(10)
    probabilities = torch.full((30, 3), 0.02)
    probabilities[torch.arange(30), labels] = 0.96
    labels[4] = (labels[4] + 1) % 3  # the probe is sure of another class
    probabilities[7] = torch.tensor([0.5, 0.4, 0.1])
    suspects = rank_labels(probabilities, labels)
    assert [own.place for own in suspects if own.is_flagged] == [4]
    assert [own.place for own in suspects[:2]] == [4, 7]


def test_pairs_that_are_alike_are_listed() -> None:
    labels = torch.tensor([0] * 10 + [1] * 10 + [2] * 10)
    scores = torch.nn.functional.one_hot(labels, 3).float()
    scores[:20, :2] = torch.tensor([0.6, 0.4])  # class 1 is always taken for class 0
    pairs = inseparable_pairs(scores, labels)
    assert [(pair.first, pair.second, pair.accuracy, pair.count) for pair in pairs] == [(0, 1, 0.5, 20)]
    assert not any(own.is_flagged for own in rank_labels(scores, labels))  # classes that are alike are no evidence


# The verb


def test_verb_writes_report_and_resumes(tmp_path: Path, capsys) -> None:
    root = two_classes(tmp_path / "videos", 5)
    (root / "broken.mp4").write_text("not a video")
    with (root / "list.csv").open("a") as out:
        out.write("broken.mp4,white\nmissing.mp4,black\n")
    args = [str(root / "list.csv"), "--num_workers=0", "--num_frames=4", f"--output_dir={tmp_path / 'out'}"]
    run("inspect", [*args, f"--fix={tmp_path / 'clean.csv'}"])
    record = json.loads((tmp_path / "out/inspect.json").read_text())
    assert [entry["path"] for entry in record["clean"]["broken"]] == ["broken.mp4", "missing.mp4"]
    assert "10 new, 2 broken" in (capsys.readouterr().err)
    assert len((tmp_path / "clean.csv").read_text().splitlines()) == 11
    run("inspect", args)
    assert "0 new, 2 broken" in (capsys.readouterr().err)
    again = json.loads((tmp_path / "out/inspect.json").read_text())
    assert (again["clean"], again["motion"]) == (record["clean"], record["motion"])
    assert again["motion"]["need"] in ("order", "frames", "one frame", "unclear")
    with pytest.raises(SystemExit):
        run("inspect", [*args, f"--fix={tmp_path / 'clean.csv'}"])
    assert "exists; give the name of a new file" in capsys.readouterr().err


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>"
    for label in (name.replace("/", "|"), "b&<b>"):
        for index in range(3):
            write_video(tmp_path / "videos" / label / f"<img src=x onerror=y>{index}.mp4", moving_square(index), 8)
    inspect(tmp_path / "videos", tmp_path, examples=4)
    page = (tmp_path / "out/report.html").read_text()
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=y&gt;0.mp4" in page


@pytest.mark.parametrize(("classes", "clips"), [(1, 3), (3, 1), (2, 2)])
def test_few_clips_end_in_a_note(tmp_path: Path, classes: int, clips: int) -> None:
    for label in range(classes):
        for index in range(clips):
            write_video(tmp_path / f"videos/class{label}/{index}.mp4", moving_square(10 * label + index), 8)
    result = inspect(tmp_path / "videos", tmp_path)
    assert (result.findings.labels is None) == (classes == 1 or clips == 1)
    assert result.findings.notes
    assert (tmp_path / "out/report.html").is_file()


def test_folder_without_classes_has_no_labels(tmp_path: Path) -> None:
    for index in range(3):
        write_video(tmp_path / f"videos/{index}.mp4", moving_square(index), 8)
    result = inspect(tmp_path / "videos", tmp_path, fix=str(tmp_path / "clean.csv"))
    assert not result.clips.is_labeled
    assert result.findings.labels is None
    assert (tmp_path / "clean.csv").read_text().splitlines()[0] == "path"


def test_only_broken_videos_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "videos/a").mkdir(parents=True)
    (tmp_path / "videos/a/x.mp4").write_text("text")
    with pytest.raises(InputError, match="none of the 1 videos can be read"):
        inspect(tmp_path / "videos", tmp_path)


@pytest.mark.parametrize("option", ["drop=[labels]", "fix=clean.txt", "folds=1", "num_frames=0"])
def test_wrong_options_are_refused(option: str, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        run("inspect", [str(tmp_path), f"--{option}"])
    assert option.split("=")[0] in capsys.readouterr().err
