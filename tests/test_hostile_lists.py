"""Odd or hostile lists, folders and shards: refused in one error, or their entries are skipped."""

import io
import json
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_loader import grey_video

from clipvid.data.broken import BadVideos, Failure
from clipvid.data.lists.classes import read_classes
from clipvid.data.lists.sources import find_videos
from clipvid.data.manifest import ManifestError, load_manifest
from clipvid.data.scan import check_all
from clipvid.decoding.errors import VideoError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "classes.txt").write_text("left\nright\n")
    return tmp_path


@pytest.mark.parametrize("digits", [20, 5_000, 50_000])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.txt", "a.mp4 {}\n"),
        ("l.csv", "path,label\na.mp4,{}\n"),
        ("l.jsonl", '{{"path": "a.mp4", "label": {}}}\n'),
        ("l.json", '[{{"path": "a.mp4", "label": {}}}]'),
    ],
)
def test_numbers_of_many_digits_are_refused(digits: int, name: str, content: str, root: Path):
    (root / name).write_text(content.format("9" * digits))
    with pytest.raises(ManifestError, match=name) as caught:
        load_manifest(root, name, "classes.txt", check_files=False)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("content", ["id,name\n{},left\n", "id,name,partner\n0,left,{}\n"])
def test_class_ids_of_many_digits_are_refused(content: str, root: Path):
    (root / "c.csv").write_text(content.format("1" * 5_000))
    with pytest.raises(ManifestError, match=r"c\.csv:2"):
        read_classes(root / "c.csv")


@pytest.mark.parametrize("content", [",\n", ",,,\n", ";\n", '"\n', "left\n,\n", "\t;\n,"])
def test_class_names_without_letters_are_refused(content: str, root: Path):
    (root / "c.txt").write_text(content)
    with pytest.raises(ManifestError, match=r"c\.txt:\d"):
        read_classes(root / "c.txt")


@pytest.mark.parametrize("name", ["l.json", "l.jsonl", "c.json"])
@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_deep_json_is_refused(name: str, opening: str, root: Path):
    (root / name).write_text(opening * 200_000)
    with pytest.raises(ManifestError, match=rf"{name}:1"):
        read_classes(root / name) if name == "c.json" else load_manifest(root, name, None)


@pytest.mark.parametrize("name", ["l.txt", "l.csv"])
def test_long_lines_are_refused_with_their_number(name: str, root: Path):
    head = "path,label\n" if name == "l.csv" else "a.mp4 left\n"
    (root / name).write_text(f"{head}{'x' * 300_000},left\n")
    with pytest.raises(ManifestError, match=rf"{name}:2: the line has 300005 characters"):
        load_manifest(root, name, "classes.txt", check_files=False)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
@pytest.mark.parametrize("name", ["l.txt", "l.csv", "l.json", "l.jsonl", "l.parquet", "l.tar", "classes.txt"])
def test_pipe_is_refused_without_blocking(name: str, root: Path):
    (root / "list.txt").write_text("a.mp4 left\n")
    (root / name).unlink(missing_ok=True)
    os.mkfifo(root / name)
    with pytest.raises(ManifestError, match="is a pipe or device"):
        load_manifest(root, "list.txt" if name == "classes.txt" else name, "classes.txt" if "c" in name else None)


@pytest.mark.parametrize("targets", [["."], [".", "."], ["..", "."], ["../c", "../d", ".."]])
def test_link_loops_end_and_list_each_video_once(targets: list[str], root: Path):
    for kind in "cd":
        (root / "t" / kind).mkdir(parents=True)
        (root / "t" / kind / "a.mp4").write_bytes(b"video")
        for number, target in enumerate(targets):
            (root / "t" / kind / f"l{number}").symlink_to(target)
    with pytest.warns(UserWarning, match="are skipped"):
        actual = list(find_videos(root / "t"))
    assert {video.resolve() for video in actual} == {root / "t/c/a.mp4", root / "t/d/a.mp4"}
    assert len(actual) == 2


@pytest.mark.parametrize("name", [b"\xff.mp4", b"a\x80b.mp4"])
def test_names_that_are_not_utf8_are_skipped(name: bytes, root: Path):
    (root / "t/c").mkdir(parents=True)
    (root / "t/c/a.mp4").write_bytes(b"video")
    try:
        (Path(os.fsdecode(bytes(root / "t/c") + b"/" + name))).write_bytes(b"video")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.warns(UserWarning, match="1 entries are skipped"):
        assert len(load_manifest(root, "t", None)) == 1


@pytest.mark.parametrize("kind", ["file", "folder", "chain"])
@pytest.mark.parametrize("source", ["l.txt", "videos"])
def test_links_out_of_the_root_are_refused_unless_allowed(kind: str, source: str, root: Path, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "a.mp4").write_bytes(b"video")
    (root / "videos" / "left").mkdir(parents=True)
    if kind == "folder":
        (root / "videos/left/b").symlink_to(outside)
    elif kind == "file":
        (root / "videos/left/a.mp4").symlink_to(outside / "a.mp4")
    else:
        (root / "elsewhere").symlink_to(outside)
        (root / "videos/left/a.mp4").symlink_to("../../elsewhere/a.mp4")
    path = "videos/left/b/a.mp4" if kind == "folder" else "videos/left/a.mp4"
    (root / "l.txt").write_text(f"{path} left\n")
    with pytest.raises(ManifestError, match=rf"{source}:1: .*link out of .*allow_outside_root"):
        load_manifest(root, source, "classes.txt")
    assert len(load_manifest(root, source, "classes.txt", allow_outside_root=True)) == 1


def test_links_within_the_root_are_followed(root: Path):
    (root / "a.mp4").write_bytes(b"video")
    (root / "b.mp4").symlink_to("a.mp4")
    (root / "l.txt").write_text("b.mp4 left\n")
    assert len(load_manifest(root, "l.txt", "classes.txt")) == 1


@pytest.mark.parametrize("name", ["x" * 300 + ".mp4", "a\0b.mp4", "/".join(["y" * 200] * 25) + ".mp4", "loop.mp4"])
def test_path_refused_by_system_is_one_bad_video(name: str, root: Path):
    grey_video(root / "good.mp4", 4)
    (root / "loop.mp4").symlink_to("loop.mp4")
    (root / "l.txt").write_text(f"good.mp4 left\n{name} right\n")
    manifest = load_manifest(root, "l.txt", "classes.txt")
    reasons = dict(check_all(manifest, 1, num_workers=1))
    assert reasons[0] is None
    assert reasons[1]


def shard(file: Path, *members: tuple[str, bytes]) -> None:
    with tarfile.open(file, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize(
    "members",
    [
        [("a.cls", b"left"), ("a.cls", b"right")],
        [("a.cls", b"left"), ("a.json", b'{"label": "right"}')],
        [("a.cls", b"9" * (2 << 20))],
        [("a.json", b"[" * 500_000)],
    ],
)
def test_shard_texts_that_disagree_or_are_huge_are_refused(members: list[tuple[str, bytes]], root: Path):
    shard(root / "s.tar", ("a.mp4", b"video"), *members)
    with pytest.raises(ManifestError, match=r"s\.tar"):
        load_manifest(root, "s.tar", "classes.txt")


@pytest.mark.parametrize("size", [10**4, 10**9, 10**12])
@pytest.mark.parametrize("name", ["a.mp4", "a.cls"])
def test_shard_members_longer_than_the_file_are_refused(size: int, name: str, root: Path):
    shard(root / "s.tar", ("a.mp4", b"video"), ("a.cls", b"left"))
    content = bytearray((root / "s.tar").read_bytes())[:2048]
    start, member = content.find(f"{name}\0".encode()), tarfile.TarInfo(name)
    member.size = size
    content[start : start + 512] = member.tobuf(tarfile.GNU_FORMAT)[:512]
    (root / "s.tar").write_bytes(content)
    with pytest.raises(ManifestError, match=r"s\.tar"):
        load_manifest(root, "s.tar", "classes.txt")


@pytest.mark.parametrize("last", ["999999", "99999999", "99999999999"])
def test_brace_bombs_are_refused(last: str, root: Path):
    with pytest.raises((ManifestError, FileNotFoundError), match=r"s-\{0\.\."):
        load_manifest(root, f"s-{{0..{last}}}.tar", "classes.txt")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.json", '[{"path": "a.mp4", "label": "left", "start": "a\\nb"}]', "column 'start'"),
        ("l.csv", "path,label," + "x" * 50_000 + "\n", "unknown column"),
        ("c.csv", "id,name,name," + "y" * 50_000 + "\n0,a,b,c\n", "names a column twice"),
    ],
)
def test_messages_about_lists_are_short_lines(name: str, content: str, message: str, root: Path):
    (root / name).write_text(content)
    with pytest.raises(ManifestError, match=message) as error:
        read_classes(root / name) if name == "c.csv" else load_manifest(root, name, "classes.txt", check_files=False)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("half", ["\\ud800", "\\uDFFF", "\\udc00\\ud800"])
@pytest.mark.parametrize("field", ["path", "label", "start", "caption"])
def test_half_characters_in_json_are_refused_with_their_line(half: str, field: str, root: Path):
    entries = [{"path": "a\U0001f600.mp4", "label": "left"}, {"path": "b.mp4", "label": "right", field: "HALF"}]
    lines = [json.dumps(entry) for entry in entries]
    (root / "l.jsonl").write_text("\n".join(lines).replace("HALF", half))
    (root / "l.json").write_text("[" + ",\n".join(lines).replace("HALF", half) + "]")
    for name in ("l.json", "l.jsonl"):
        with pytest.raises(ManifestError, match=rf"{name}:2: its JSON has \\u[dD]\w\w\w, half of a character"):
            load_manifest(root, name, "classes.txt", check_files=False)
    (root / "l.jsonl").write_text(lines[0])
    assert load_manifest(root, "l.jsonl", "classes.txt", check_files=False).samples[0].path == "a\U0001f600.mp4"


@pytest.mark.parametrize("place", ["line", "json", "csv"])
def test_repeated_class_names_are_named_in_short(place: str, root: Path):
    name, sign = "x" * 50_000, "\n"
    texts = {"line": f"{name}{sign}{name}", "json": json.dumps([name, name]), "csv": f"id,name\n0,{name}\n1,{name}\n"}
    file = root / {"line": "c.txt", "json": "c.json", "csv": "c.csv"}[place]
    file.write_text(texts[place])
    with pytest.raises(ManifestError, match="class names given twice") as error:
        read_classes(file)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("length", [300, 90_000])
def test_long_paths_are_shown_in_part(length: int, root: Path, capsys):
    name = "x" * length + ".mp4"
    (root / "l.jsonl").write_text(json.dumps({"path": name, "label": "left"}))
    manifest = load_manifest(root, "l.jsonl", "classes.txt")
    with pytest.raises(VideoError, match="File name too long") as error:
        manifest.video(0)
    assert len(str(error.value)) < 1100
    assert error.value.path == name
    BadVideos().add([Failure(name, str(error.value))])
    assert len(capsys.readouterr().err) < 1200


@pytest.mark.parametrize("start", [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("fill", [b"\xff" * 30, bytes(30)])
def test_a_damaged_parquet_file_is_refused_in_one_line(start: float, fill: bytes, root: Path):
    table = pa.table({"path": [f"{i}.mp4" for i in range(50)], "label": ["left"] * 50})
    pq.write_table(table, root / "l.parquet")
    content = bytearray((root / "l.parquet").read_bytes())
    place = int(start * len(content))
    content[place : place + 30] = fill
    (root / "l.parquet").write_bytes(content)
    try:
        load_manifest(root, "l.parquet", "classes.txt", check_files=False)
    except ManifestError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017


@pytest.mark.parametrize("column", ["path", "label", "group", "caption"])
def test_parquet_column_names_that_are_not_utf8_are_refused(column: str, root: Path):
    columns = {"path": ["a.mp4"], "label": ["left"], "group": ["ann"], "caption": ["a"]}
    pq.write_table(pa.table(columns), root / "l.parquet", store_schema=False)
    content = (root / "l.parquet").read_bytes()
    (root / "l.parquet").write_bytes(content.replace(column.encode(), b"\xef" + column.encode()[1:]))
    with pytest.raises(ManifestError, match=r"l\.parquet: "):
        load_manifest(root, "l.parquet", "classes.txt", check_files=False)


@pytest.mark.parametrize("column", ["path", "label", "group", "caption"])
def test_parquet_text_that_is_not_utf8_is_refused(column: str, root: Path):
    columns = {"path": ["a.mp4"], "label": ["left"], "group": ["ann"], "caption": ["a"]}
    columns[column] = pa.array([b"si\xffe"]).view(pa.string())
    pq.write_table(pa.table(columns), root / "l.parquet")
    with pytest.raises(ManifestError, match=r"l\.parquet: a column is neither text nor numbers"):
        load_manifest(root, "l.parquet", "classes.txt", check_files=False)


@pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.struct([("a", pa.string())])], ids=str)
def test_parquet_columns_of_other_types_are_refused(kind: pa.DataType, root: Path):
    value = ["a.mp4"] if pa.types.is_list(kind) else {"a": "a.mp4"}
    pq.write_table(pa.table({"path": pa.array([value], kind), "label": ["left"]}), root / "l.parquet")
    with pytest.raises(ManifestError, match=r"l\.parquet: a column is neither text nor numbers"):
        load_manifest(root, "l.parquet", "classes.txt", check_files=False)
