"""Text lists, CSV, JSON and Parquet are read right, or refused with file and line."""

from pathlib import Path

import pytest

from clipvid.data.manifest import ManifestError, load_manifest


def read(
    root: Path, name: str, content: str, classes: str | None = "walk\nrun\nriding bike\n"
) -> list[tuple[str, int]]:
    (root / name).write_bytes(content.encode())
    if classes is not None:
        (root / "classes.txt").write_text(classes)
    manifest = load_manifest(root, name, None if classes is None else "classes.txt", check_files=False)
    return [(sample.path, sample.label) for sample in manifest.samples]


@pytest.mark.parametrize("suffix", ["mp4", "avi", "MOV", "webm"])
@pytest.mark.parametrize("labels", ["0 1", "0 1 1", "walk run", "0 walk", "walk, run", "0,1", "0|1", "[0, 1]", "0\t1"])
@pytest.mark.parametrize("before", ["", "a.mp4 1\n", "frames/a 12 1\n"])
def test_several_labels_of_a_video_are_refused_with_their_line(suffix: str, labels: str, before: str, tmp_path: Path):
    line = before.count("\n") + 1
    with pytest.raises(ManifestError, match=rf"l\.txt:{line}: .*several labels"):
        read(tmp_path, "l.txt", f"{before}b c.{suffix} {labels}\n")


@pytest.mark.parametrize("labels", ["0 1", "0,1", "3 4 5"])
def test_several_numbers_are_refused_without_a_list_of_classes(labels: str, tmp_path: Path):
    with pytest.raises(ManifestError, match=r"l\.txt:1: "):
        read(tmp_path, "l.txt", f"b.mp4 {labels}\n", classes=None)


@pytest.mark.parametrize("folder", ["frames/a", "a.b", "v_1.mp4x", "mp4"])
def test_frame_folders_may_have_a_number_of_frames(folder: str, tmp_path: Path):
    assert read(tmp_path, "l.txt", f"{folder} 120 1\nother 3 0\n") == [(folder, 1), ("other", 0)]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("my clips/a clip (1).mp4 0\nb.mp4 1\n", [("my clips/a clip (1).mp4", 0), ("b.mp4", 1)]),
        ("my clips/a clip (1).mp4\t0\nb.mp4\t1\n", [("my clips/a clip (1).mp4", 0), ("b.mp4", 1)]),
        ("b.mp4 riding bike\n", [("b.mp4", 2)]),
        ("a.mp4 copy.mp4 riding bike\n", [("a.mp4 copy.mp4", 2)]),
        ("ünï#1.mp4 0\n", [("ünï#1.mp4", 0)]),
        ("\ufeffb.mp4 1\r\n", [("b.mp4", 1)]),
        ("  b.mp4   run  \r\n\r\n", [("b.mp4", 1)]),
        ("riding bike/a.mp4\n", [("riding bike/a.mp4", 2)]),
    ],
)
def test_lines_of_path_and_label(content: str, expected: list[tuple[str, int]], tmp_path: Path):
    assert read(tmp_path, "l.txt", content) == expected


def test_names_of_several_words_are_whole_labels_without_a_list_of_classes(tmp_path: Path):
    assert read(tmp_path, "l.txt", "a.mp4 riding bike\nb.mp4 riding horse\n", None) == [("a.mp4", 0), ("b.mp4", 1)]
