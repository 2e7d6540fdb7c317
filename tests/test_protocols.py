"""Training and test videos of each protocol."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import REPOSITORY

from clipvid.data.manifest import ClassInfo, Manifest, ManifestError, Sample
from clipvid.evaluation.results import overlap
from clipvid.experiments.protocols import build_protocol
from clipvid.experiments.subsets import few_shot_subset, of_classes, published

NAMES = ["jump", "run", "skip", "walk"]


def manifest(counts: list[int], split: str = "train", groups: int = 2, names: list[str] = NAMES) -> Manifest:
    """Return a manifest with `counts` videos of each class."""
    samples = tuple(
        Sample(f"{names[label]}/{split}_{label}_{i}.mp4", label, group=f"g{i % groups}")
        for label, count in enumerate(counts)
        for i in range(count)
    )
    return Manifest(samples, tuple(ClassInfo(i, name) for i, name in enumerate(names)), Path("root"))


TRAIN, TEST = manifest([5, 9, 4, 7]), manifest([2, 2, 2, 2], "val")


def figures(top1: float) -> dict:
    return {"top1": {"value": top1}}


def paths(actual: Manifest) -> set[str]:
    return set(actual.paths())


def test_shots_are_drawn_by_seed_and_class() -> None:
    sets = {(shots, seed): few_shot_subset(TRAIN, shots, seed) for shots in (1, 2, 4) for seed in (0, 1)}
    for (shots, _), actual in sets.items():
        assert [sum(sample.label == label for sample in actual.samples) for label in range(4)] == [shots] * 4
    assert paths(sets[1, 0]) < paths(sets[2, 0]) < paths(sets[4, 0])
    assert paths(sets[2, 0]) != paths(sets[2, 1])
    fewer_classes = few_shot_subset(of_classes(TRAIN, [0, 1]), 2, 0)
    assert paths(fewer_classes) == {path for path in paths(sets[2, 0]) if path.startswith(("jump", "run"))}
    with pytest.raises(ManifestError, match="5 shots: the class 'skip' has 4 training videos"):
        few_shot_subset(TRAIN, 5, 0)


def test_few_shot_summary_over_seeds() -> None:
    protocol = build_protocol({"name": "few_shot", "shots": [1, 2], "seeds": [0, 7]})
    parts = protocol.parts(TRAIN, TEST, trained=True)
    assert [(part.group, part.seed, len(part.train)) for part in parts] == [
        ("K=1 seed=0", 0, 4), ("K=1 seed=7", 7, 4), ("K=2 seed=0", 0, 8), ("K=2 seed=7", 7, 8)
    ]  # fmt: skip
    assert len({part.run for part in parts}) == 4
    assert all(part.test is TEST for part in parts)
    values = [0.25, 0.75, 0.5, 0.5]
    actual = protocol.summary(parts, {part.group: figures(value) for part, value in zip(parts, values, strict=True)})
    assert actual["few_shot"]["K=1"] == {"mean": 0.5, "std": pytest.approx(0.125**0.5), "values": [0.25, 0.75]}
    assert actual["few_shot"]["K=2"]["std"] == 0.0
    (untrained,) = protocol.parts(None, TEST, trained=False)
    assert (untrained.group, untrained.train) == ("K=0", None)


def test_published_lists_match_by_stem(tmp_path) -> None:
    path = tmp_path / "shots.txt"
    path.write_text("train_1_3.avi 1\ntrain_0_0.avi 0\nold/train_3_2.avi 3\ntrain_2_1.avi 2\n")
    actual = published(TRAIN, path, 1)
    assert [(sample.path, sample.label) for sample in actual.samples][:2] == [
        ("run/train_1_3.mp4", 1), ("jump/train_0_0.mp4", 0)
    ]  # fmt: skip
    with pytest.raises(ManifestError, match=r"has \[1\] videos per class, expected 2"):
        published(TRAIN, path, 2)
    path.write_text("train_1_3.avi 1\nelsewhere.avi 0\n")
    with pytest.raises(ManifestError, match=r"names 1 videos that data\.train does not have.*'elsewhere'"):
        published(TRAIN, path, 1)


@pytest.mark.parametrize(
    "line", ["{}", "{} 0", "{}.avi 0", "{}.avi,0", "a b/{}.avi 0", "a/{}.mp4", '"{}.avi",0', "{} 120 0"]
)
@pytest.mark.parametrize("name", ["v_1", "brush hair 1", "one, two 3", "a.b c"])
def test_published_lists_with_spaces_and_commas(tmp_path, line: str, name: str) -> None:
    train = Manifest((Sample(f"x/{name}.mp4", 0), Sample("x/v.mp4", 0)), TRAIN.classes, Path("root"))
    (tmp_path / "list.txt").write_text(line.format(name) + "\n")
    assert list(published(train, tmp_path / "list.txt", 1).paths()) == [f"x/{name}.mp4"]


@pytest.mark.parametrize("line", [",", " , 1", ",1", "0", '""', "'", "/"])
def test_published_list_with_unknown_video_is_refused(tmp_path, line: str) -> None:
    (tmp_path / "list.txt").write_text(f"train_0_0.avi 0\n{line}\n")
    with pytest.raises(ManifestError, match=r"names 1 videos that data\.train does not have"):
        published(TRAIN, tmp_path / "list.txt", 1)


@pytest.mark.parametrize("shots", [2, 4, 8, 16])
def test_the_lists_of_vifi_clip_are_read(shots: int) -> None:
    shared = Path(os.environ.get("CLIPVID_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    path = shared / f"labels/ucf101/vifi_train1_few_shot_{shots}.txt"
    if not path.is_file():
        pytest.skip(f"no {path}; CLIPVID_SHARED_DATA names the folder")
    lines = [line.split() for line in path.read_text().splitlines()]
    samples = tuple(Sample(f"{name.split('_')[1]}/{Path(name).stem}.mp4", int(label)) for name, label in lines)
    names = {sample.label: sample.path.split("/")[0] for sample in samples}
    train = Manifest(samples[::-1], tuple(ClassInfo(i, names[i]) for i in range(101)), Path("root"))
    assert len(published(train, path, shots)) == 101 * shots


def test_base_to_novel_parts(tmp_path) -> None:
    protocol = build_protocol({"name": "base_to_novel", "shots": 2})
    base, novel = protocol.parts(TRAIN, TEST, trained=True)
    assert (base.group, novel.group, base.run) == ("base", "novel", novel.run)
    assert base.train.class_names == base.test.class_names == ["run", "walk"]  # those with the most videos
    assert novel.test.class_names == ["jump", "skip"]
    assert {sample.label for sample in novel.test.samples} == {0, 1}
    assert len(base.train) == 4
    assert all(sample.path.startswith(("run", "walk")) for sample in (*base.train.samples, *base.test.samples))
    actual = protocol.summary([base, novel], {"novel": figures(0.4), "base": figures(0.8)})["base_to_novel"]
    assert (actual["base"]["values"], actual["novel"]["values"]) == ([0.8], [0.4])
    assert actual["harmonic_mean"]["mean"] == pytest.approx(2 * 0.8 * 0.4 / 1.2)
    untrained = protocol.parts(TRAIN, TEST, trained=False)
    assert [(part.group, part.train, len(part.test)) for part in untrained] == [("base", None, 4), ("novel", None, 4)]


def test_base_classes_from_a_file(tmp_path) -> None:
    root = Manifest(TRAIN.samples, TRAIN.classes, tmp_path)
    asked = Manifest(TEST.samples, TEST.classes, tmp_path)
    (tmp_path / "base.txt").write_text("skip\njump\n")
    protocol = build_protocol({"name": "base_to_novel", "base": "base.txt", "shots": None, "seeds": [0, 1]})
    parts = protocol.parts(root, asked, trained=True)
    assert [part.group for part in parts] == ["base seed=0", "novel seed=0", "base seed=1", "novel seed=1"]
    assert parts[0].train.class_names == ["jump", "skip"]
    assert len(parts[0].train) == 9
    (tmp_path / "base.txt").write_text("skip\nhop\n")
    with pytest.raises(ManifestError, match=r"\['hop'\] are not classes"):
        protocol.parts(root, asked, trained=True)


def test_partners_are_renumbered() -> None:
    classes = tuple(ClassInfo(i, NAMES[i], {"partner": str(i ^ 1), "pair": str(i // 2)}) for i in range(4))
    actual = of_classes(Manifest(TRAIN.samples, classes, Path("root")), [1, 2, 3])
    assert [(info.id, info.name, info.attributes["partner"]) for info in actual.classes] == [
        (0, "run", "-1"), (1, "skip", "2"), (2, "walk", "1")
    ]  # fmt: skip


def test_leave_one_group_out_tests_every_video_once() -> None:
    protocol = build_protocol("leave_one_group_out")
    parts = protocol.parts(TRAIN, TEST, trained=True)
    assert [part.run for part in parts] == ["fold_g0", "fold_g1"]
    assert sum(len(part.test) for part in parts) == len(TRAIN) + len(TEST)
    assert all(not paths(part.train) & paths(part.test) for part in parts)
    (untrained,) = protocol.parts(TRAIN, TEST, trained=False)
    assert len(untrained.test) == len(TRAIN) + len(TEST)


@pytest.mark.parametrize("options", [{}, {"folds": 2, "seed": 3}])
def test_folds_have_places_in_pooled_manifest(options: dict) -> None:
    parts = build_protocol({"name": "leave_one_group_out"} | options).parts(TRAIN, TEST, trained=True)
    pooled = TRAIN.joined(TEST)
    assert sorted(place for part in parts for place in part.places) == list(range(len(pooled)))
    for part in parts:
        assert [pooled.samples[place] for place in part.places] == list(part.test.samples)


@pytest.mark.parametrize("groups", [["a person", "another person"], ["a,b", "a b=1"], ["seed=1", "K=1"]])
def test_groups_keep_their_whole_names(groups: list[str]) -> None:
    samples = [replace(sample, group=groups[i % 2]) for i, sample in enumerate(TRAIN.samples)]
    parts = build_protocol("leave_one_group_out").parts(replace(TRAIN, samples=samples), manifest([0] * 4), True)
    assert sorted(part.run for part in parts) == sorted(f"fold_{group}" for group in groups)


@pytest.mark.parametrize("options", [{}, {"folds": 2}])
@pytest.mark.parametrize("group", ["../../x", "a/b", "/tmp/x", "..\\x", "C:x", "x" * 300, "\x1b[2J", "a\nb", "..", ""])
def test_folders_of_groups_stay_below_the_output_folder(group: str, options: dict) -> None:
    names = [group, f"{group}/", "other"]
    samples = [replace(sample, group=names[i % 3]) for i, sample in enumerate(TRAIN.samples)]
    protocol = build_protocol({"name": "leave_one_group_out", **options})
    runs = [part.run for part in protocol.parts(replace(TRAIN, samples=samples), manifest([0] * 4), True)]
    assert len({run.lower() for run in runs}) == len(runs)
    for run in runs:
        assert Path(run).parts == (run,)
        assert not set(run) & set('<>:"/\\|?*')
        assert run.isprintable()
        assert len(run.encode()) < 200


def test_base_classes_with_spaces_and_commas(tmp_path) -> None:
    names = ["brush hair", "climb stairs, up", "walk", "K=1 seed=0"]
    train, test = (
        Manifest(videos.samples, manifest([0] * 4, names=names).classes, tmp_path) for videos in (TRAIN, TEST)
    )
    (tmp_path / "base.txt").write_text("climb stairs, up\nbrush hair\n")
    protocol = build_protocol({"name": "base_to_novel", "base": "base.txt", "shots": 1})
    base, novel = protocol.parts(train, test, trained=True)
    assert (base.test.class_names, novel.test.class_names) == (names[:2], names[2:])


def test_overlap_ignores_spelling() -> None:
    assert overlap(["brush hair", "TaiChi", "run"], ["brush_hair", "Tai chi", "walk"]) == ["brush_hair", "Tai chi"]
    assert overlap(["कल", "👍"], ["काल", "👎", "की", "कल"]) == ["कल"]


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("few_shots", "did you mean 'few_shot'"),
        ({"name": "few_shot", "shot": [1]}, "has no option 'shot'"),
        ({"name": "few_shot", "shots": []}, "at least one of each"),
        ({"name": "base_to_novel", "shots": 0}, "at least one of each"),
    ],
)
def test_invalid_protocols_are_refused(spec, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        build_protocol(spec)


def test_folds_hold_out_every_group_once() -> None:
    everyone = manifest([7, 7], groups=7)
    people = {sample.group for sample in everyone.samples}
    sets = {}
    for seed in (0, 1):
        protocol = build_protocol({"name": "leave_one_group_out", "folds": 3, "seed": seed})
        parts = protocol.parts(everyone, manifest([0, 0]), trained=True)
        held_out = [{sample.group for sample in part.test.samples} for part in parts]
        assert sorted(len(groups) for groups in held_out) == [2, 2, 3]
        assert sorted(group for groups in held_out for group in groups) == sorted(people)
        for fold, (part, groups) in enumerate(zip(parts, held_out, strict=True)):
            assert part.train is not None
            assert {sample.group for sample in part.train.samples} == people - groups
            assert paths(part.train) | paths(part.test) == paths(everyone)
            assert part.run == f"fold_{fold}_{'_'.join(sorted(groups))}"
        assert {part.group for part in parts} == {"all"}
        sets[seed] = {frozenset(groups) for groups in held_out}
        again = build_protocol({"name": "leave_one_group_out", "folds": 3, "seed": seed})
        assert [part.run for part in again.parts(everyone, manifest([0, 0]), trained=True)] == [p.run for p in parts]
    assert sets[0] != sets[1]


def test_folds_of_many_groups_have_distinct_folders() -> None:
    everyone = manifest([45, 45], groups=90)
    samples = tuple(replace(sample, group=f"a_name_of_a_person_{i}") for i, sample in enumerate(everyone.samples))
    protocol = build_protocol({"name": "leave_one_group_out", "folds": 3})
    parts = protocol.parts(replace(everyone, samples=samples), manifest([0, 0]), trained=True)
    assert len({part.run for part in parts}) == 3
    assert max(len(part.run.encode()) for part in parts) < 255


def test_folds_need_as_many_groups() -> None:
    with pytest.raises(ManifestError, match="folds=4, but there are 2 groups"):
        build_protocol({"name": "leave_one_group_out", "folds": 4}).parts(TRAIN, TEST, trained=True)
    with pytest.raises(ValueError, match="folds=1: expected at least 2"):
        build_protocol({"name": "leave_one_group_out", "folds": 1})


def test_folds_train_on_few_videos_of_each_class() -> None:
    everyone = manifest([14, 14], groups=7)
    spec = {"name": "leave_one_group_out", "folds": 3}
    whole = build_protocol(spec).parts(everyone, manifest([0, 0]), trained=True)
    parts = build_protocol(spec | {"shots": 2}).parts(everyone, manifest([0, 0]), trained=True)
    for part, full in zip(parts, whole, strict=True):
        assert part.train is not None
        assert full.train is not None
        assert paths(part.test) == paths(full.test)
        assert paths(part.train) < paths(full.train)
        assert [sum(sample.label == label for sample in part.train.samples) for label in (0, 1)] == [2, 2]
    with pytest.raises(ManifestError, match="99 shots: the class"):
        build_protocol(spec | {"shots": 99}).parts(everyone, manifest([0, 0]), trained=True)
    with pytest.raises(ValueError, match="shots=0: expected at least 1"):
        build_protocol(spec | {"shots": 0})


def test_holdout_trains_on_few_videos_of_each_class() -> None:
    train, test = manifest([5, 7]), manifest([2, 2], "val")
    drawn = [build_protocol({"name": "holdout", "shots": 2, "seed": s}).parts(train, test, True)[0] for s in (0, 0, 1)]
    assert drawn[0].train is not None
    assert [sum(sample.label == label for sample in drawn[0].train.samples) for label in (0, 1)] == [2, 2]
    assert drawn[0].train.hash == drawn[1].train.hash != drawn[2].train.hash
    assert drawn[0].test is test
    assert build_protocol("holdout").parts(train, test, True)[0].train is train
    with pytest.raises(ValueError, match="shots=0: expected at least 1"):
        build_protocol({"name": "holdout", "shots": 0})
