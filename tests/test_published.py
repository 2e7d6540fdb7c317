"""Pushes publish only the model's files with unchanged texts, and a backbone's config cannot run code."""

import json

import pytest
from PIL import Image
from transformers import AutoConfig

from clipvid.backbone import load_backbone
from clipvid.data.reader import VideoError, read_frames
from clipvid.hub import from_pretrained
from clipvid.hub.card import plain_text, public_config
from clipvid.hub.push import files_to_push

NAMES = ["/m/0abc dog", "/m/09xyz/cat", "local-dir:/x"]


def test_push_keeps_class_names_that_look_like_paths(make_model, tmp_path):
    make_model("none", NAMES).save_pretrained(tmp_path / "m")
    record = json.loads(files_to_push(tmp_path / "m", "u/m")["config.json"])
    assert record["labels"] == NAMES


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"root": "/home/a/videos"}, {"root": "videos"}),
        ({"val": {"name": "list", "file": "/home/a/val.txt"}}, {"val": {"name": "list", "file": "val.txt"}}),
        ({"backbone": "local-dir:/home/a/clip"}, {"backbone": "local-dir:clip"}),
        ({"templates": ["/a/{}"]}, {"templates": ["/a/{}"]}),
        ({"templates": "/home/a/templates.txt"}, {"templates": "templates.txt"}),
        ({"train": "train.csv", "lr": 0.1}, {"train": "train.csv", "lr": 0.1}),
    ],
)
def test_paths_are_cut_only_in_path_fields(content, expected):
    assert public_config(content) == expected


@pytest.mark.parametrize("folder", ["backbone", "lora"])
def test_push_excludes_foreign_files(make_model, tmp_path, folder):
    make_model("none", ["a", "b"]).save_pretrained(tmp_path / "m")
    before = set(files_to_push(tmp_path / "m", "u/m"))
    (tmp_path / "m" / folder).mkdir(exist_ok=True)
    (tmp_path / "m" / folder / "private.json").write_text("{}")
    assert set(files_to_push(tmp_path / "m", "u/m")) == before


def test_push_refuses_a_link(make_model, tmp_path):
    make_model("none", ["a", "b"]).save_pretrained(tmp_path / "m")
    pixels = tmp_path / "m" / "video_preprocessor_config.json"
    pixels.rename(tmp_path / "elsewhere.json")
    pixels.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(ValueError, match="is a link"):
        files_to_push(tmp_path / "m", "u/m")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("![x](http://a/b.png)", r"\!\[x\](http://a/b.png)"),
        ("a\n\n## Measured\n\n| top1 | 1.0 |", r"a \#\# Measured \| top1 \| 1.0 \|"),
        ("<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)&gt;"),
        ("brush_hair", "brush_hair"),
        ("\x1b[31mred", r"\[31mred"),
    ],
)
def test_card_escapes_class_names(name, shown):
    assert plain_text(name) == shown


@pytest.mark.parametrize(
    ("part", "option", "value"),
    [
        ("text_cfg", "hf_model_name", "somebody/model"),
        ("text_cfg", "hf_model_name", "t"),
        ("vision_cfg", "timm_model_name", "hf-hub:somebody/model"),
        ("vision_cfg", "timm_model_name", "local-dir:t"),
    ],
)
def test_backbone_that_names_foreign_code_is_refused(clip_folder, tmp_path, part, option, value):
    (tmp_path / "t").mkdir()
    config = json.loads((clip_folder / "open_clip_config.json").read_text())
    config["model_cfg"][part][option] = str(tmp_path / value) if value == "t" else value
    folder = tmp_path / "clip"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    (folder / "open_clip_model.safetensors").write_bytes((clip_folder / "open_clip_model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="its config names the"):
        load_backbone(f"local-dir:{folder}")


def test_local_folder_without_safetensors_is_refused(clip_folder, tmp_path):
    (tmp_path / "open_clip_config.json").write_text((clip_folder / "open_clip_config.json").read_text())
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(RuntimeError, match=r"has no file open_clip_model\.safetensors"):
        load_backbone(f"local-dir:{tmp_path}")


@pytest.mark.parametrize("name", ["/etc/hostname", "../other.safetensors", "backbone/x.safetensors", "config.json"])
def test_model_folder_reads_no_other_files(make_model, tmp_path, name):
    make_model("none", ["a", "b"]).save_pretrained(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    record = json.loads(path.read_text())
    record["files"][name] = "00"
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="`files` names"):
        from_pretrained(tmp_path / "m")


@pytest.mark.parametrize("count", [10**9, 3, -1])
def test_mismatched_num_labels_is_refused(make_model, tmp_path, count):
    make_model("none", ["a", "b"]).save_pretrained(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_labels": count}))
    with pytest.raises(ValueError, match=f"num_labels={count}"):
        AutoConfig.from_pretrained(tmp_path / "m")


def test_frame_format_with_external_program_is_refused(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    (tmp_path / "1.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(VideoError, match=r"1\.png is not a readable image"):
        read_frames(str(tmp_path), [0, 1])
