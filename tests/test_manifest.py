import os
from pathlib import Path

import pytest

from clipvid.data.manifest import ClassInfo, ManifestError, Sample, leave_one_group_out, load_manifest

VIDEOS = ["run/ann_run.mp4", "run/bob_run.mp4", "side walk/ann_side walk.mp4", "side walk/cid_side walk.mp4"]
LABELS = [0, 0, 1, 1]
NAMES = ["run", "side walk"]
PEOPLE = ["ann", "bob", "ann", "cid"]
PERSON = r"[^/]+/([a-z]+)_"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "videos"
    for video in VIDEOS:
        (root / video).parent.mkdir(parents=True, exist_ok=True)
        (root / video).write_bytes(b"video")
    (root / "classes.txt").write_text("run\nside walk\n")
    (root / "classes.csv").write_text("id,name,motion\n1,side walk,slow\n0,run,fast\n")
    return root


def listed(labels: list, separator: str = " ") -> str:
    return "".join(f"{video}{separator}{label}\n" for video, label in zip(VIDEOS, labels, strict=True))


def table(labels: list, groups: list[str] | None = None) -> str:
    head = "group,label,caption,path\n" if groups else "path,label\n"
    rows = zip(groups or PEOPLE, labels, VIDEOS, strict=True)
    return head + "".join(f"{g},{n},,{v}\n" if groups else f"{v},{n}\n" for g, n, v in rows)


NAMED = [NAMES[label] for label in LABELS]


@pytest.mark.parametrize(
    "content",
    [
        listed(LABELS),
        listed(LABELS, "\t"),
        listed(NAMED),
        listed(LABELS).replace("\n", "\r\n"),
        "\ufeff" + listed(LABELS) + "\n\n",
        listed(LABELS).replace("run/ann", "./run/../run/ann"),
        table(LABELS),
        table(NAMED),
        table(LABELS).replace("path,label", "path, label"),
    ],
    ids=["ids", "tabs", "names", "crlf", "bom", "dots", "csv", "csv-names", "csv-spaces"],
)
@pytest.mark.parametrize("classes", ["classes.txt", "classes.csv"])
def test_list_spellings_are_equivalent(content: str, classes: str, root: Path):
    (root / "list").write_bytes(content.encode())
    (root / "plain").write_text(listed(LABELS))
    manifest = load_manifest(root, "list", classes)
    assert tuple(manifest.samples) == tuple(Sample(video, label) for video, label in zip(VIDEOS, LABELS, strict=True))
    assert manifest.class_names == NAMES
    assert manifest.hash == load_manifest(root, "plain", classes).hash
    assert manifest.video(2) == root / VIDEOS[2]


def test_class_attributes_are_kept(root: Path):
    (root / "list").write_text(listed(LABELS))
    manifest = load_manifest(root, "list", "classes.csv")
    assert manifest.classes == (ClassInfo(0, "run", {"motion": "fast"}), ClassInfo(1, "side walk", {"motion": "slow"}))


def test_classes_may_come_from_the_names_in_the_list(root: Path):
    (root / "list").write_text(table(["walk", "walk", "jump", "jump"]))
    manifest = load_manifest(root, "list", None)
    assert manifest.class_names == ["jump", "walk"]
    assert [sample.label for sample in manifest.samples] == [1, 1, 0, 0]
    (root / "list").write_text(listed(LABELS))
    with pytest.raises(ManifestError, match=r"list:1: .*give a class list"):
        load_manifest(root, "list", None)


def test_groups_from_column_or_pattern(root: Path):
    (root / "list").write_text(table(LABELS, groups=["w", "x", "y", "z"]))
    assert [sample.group for sample in load_manifest(root, "list").samples] == ["w", "x", "y", "z"]
    assert [sample.group for sample in load_manifest(root, "list", group_pattern=PERSON).samples] == PEOPLE


def test_leave_one_group_out_is_a_partition_by_group(root: Path):
    (root / "list").write_text(listed(LABELS))
    manifest = load_manifest(root, "list", group_pattern=PERSON)
    folds = list(leave_one_group_out(manifest))
    assert [group for group, _, _ in folds] == ["ann", "bob", "cid"]
    for group, train, test in folds:
        assert {sample.group for sample in test.samples} == {group}
        assert group not in {sample.group for sample in train.samples}
        assert sorted([*train.samples, *test.samples], key=str) == sorted(manifest.samples, key=str)
        assert train.classes == test.classes == manifest.classes


@pytest.mark.parametrize(("pattern", "problem"), [(None, "4 samples have no group"), (r"(\.mp4)", "the groups are")])
def test_leave_one_group_out_needs_groups(pattern: str | None, problem: str, root: Path):
    (root / "list").write_text(listed(LABELS))
    with pytest.raises(ManifestError, match=problem):
        next(leave_one_group_out(load_manifest(root, "list", group_pattern=pattern)))


def test_hash_covers_every_field(root: Path):
    def hash_of(content: str, classes: str = "classes.txt", pattern: str | None = None) -> str:
        (root / "list").write_text(content)
        return load_manifest(root, "list", classes, pattern).hash

    lines = listed(LABELS).splitlines(keepends=True)
    hashes = [
        hash_of(listed(LABELS)),
        hash_of(listed([0, 0, 1, 0])),
        hash_of("".join(lines[:3])),
        hash_of("".join(lines[::-1])),
        hash_of(listed(LABELS), "classes.csv"),
        hash_of(listed(LABELS), pattern=PERSON),
    ]
    assert len(set(hashes)) == len(hashes)
    assert hashes[0] == hash_of(listed(LABELS))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no video is listed"),
        ("jog/ann_run.mp4\n", r"list:1: 'jog/ann_run\.mp4' has no label"),
        (listed([0, 0, 1, 2]), r"list:4: label 2 is outside of the 2 classes"),
        (listed([0, -1, 1, 1]), r"list:2: label -1 is outside"),
        (listed([0, 0, "jump", 1]), r"list:3: label 'jump' is neither"),
        (listed([0, 0, 1.5, 1]), r"list:3: label '1\.5' is neither"),
        (listed(LABELS) + "\n./run/ann_run.mp4 1\n", r"list:6: already listed at list:1"),
        ("run/none.mp4 0\nrun/nil.mp4 0\n", r"list:1: no video at .*none\.mp4\n.*list:2: no video"),
        ("".join(f"{i}.mp4 0\n" for i in range(9)), "and 4 more"),
        ("run/ann_run.mp4 0\n../secret.mp4 0\n", r"list:2: '\.\./secret\.mp4' is outside of the root"),
        ("/etc/secret.mp4 0\n", "is outside of the root"),
        ("path,label\nrun/ann_run.mp4\n", r"list:2: 1 values for the 2 columns"),
        ("path,label\nrun/ann_run.mp4,\n", r"list:2: no label given"),
        ('path,label,caption\nrun/ann_run.mp4,0,"open\nrun/bob_run.mp4,0,x\n', r"list:2: .*; close the quotes"),
        ("path,label,path\nrun/ann_run.mp4,0,x\n", r"list:1: .* names a column twice"),
        ("run/ann_run.mp4,0\n", "has no label"),
    ],
)
def test_bad_lists_are_refused_with_file_and_line(content: str, message: str, root: Path):
    (root / "list").write_text(content)
    with pytest.raises(ManifestError, match=message):
        load_manifest(root, "list", "classes.txt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected 0, 1, 2"),
        ("id,name\n0,run\n2,walk\n", "expected 0, 1, 2"),
        ("id,name\n0,run\n0,walk\n", "expected 0, 1, 2"),
        ("id,name\nzero,run\n", r"classes:2: class id 'zero'"),
        ("id,name\n0,\n", r"classes:2: no name given"),
        ("run\nrun\n", r"given twice: \['run'\]"),
    ],
)
def test_bad_classes_are_refused(content: str, message: str, root: Path):
    (root / "list").write_text(listed(LABELS))
    (root / "classes").write_text(content)
    with pytest.raises(ManifestError, match=message):
        load_manifest(root, "list", "classes")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("(ann", "not a regular expression"), ("ann", "has no group"), ("(zed)_", r"list:1: .*finds no group")],
)
def test_bad_patterns_are_refused(pattern: str, message: str, root: Path):
    (root / "list").write_text(listed(LABELS))
    with pytest.raises(ManifestError, match=message):
        load_manifest(root, "list", group_pattern=pattern)


def test_missing_lists_are_named(root: Path):
    with pytest.raises(FileNotFoundError, match=r"no list of videos at .*nothing\.txt"):
        load_manifest(root, "nothing.txt")
    (root / "list").write_text(listed(LABELS))
    with pytest.raises(FileNotFoundError, match=r"no list of classes at .*nothing\.txt"):
        load_manifest(root, "list", "nothing.txt")


def test_not_text_is_refused(root: Path):
    (root / "list").write_bytes(b"\xff\xfe\x00run")
    with pytest.raises(ManifestError, match="not UTF-8"):
        load_manifest(root, "list")


def test_outside_videos_and_unchecked_files_on_request(root: Path):
    outside = root.parent / "other.mp4"
    outside.write_bytes(b"video")
    (root / "list").write_text(f"../other.mp4 0\n{VIDEOS[0]} 0\n")
    manifest = load_manifest(root, "list", allow_outside_root=True)
    assert os.path.samefile(manifest.video(0), outside)
    (root / "list").write_text("run/none.mp4 0\n")
    assert len(load_manifest(root, "list", check_files=False)) == 1


def test_joining_lists(root: Path):
    lines = listed(LABELS).splitlines(keepends=True)
    (root / "whole").write_text("".join(lines))
    (root / "first").write_text("".join(lines[:2]))
    (root / "second").write_text("".join(lines[2:]))
    whole, first, second = (load_manifest(root, name) for name in ("whole", "first", "second"))
    assert first.joined(second).hash == whole.hash
    with pytest.raises(ManifestError, match=r"2 videos are in both lists"):
        first.joined(whole)
    with pytest.raises(ManifestError, match="different classes or roots"):
        first.joined(load_manifest(root, "second", "classes.txt"))
