"""Pushes publish only the model's files with unchanged texts, and a backbone's config cannot run code."""

import html.parser
import json
import os
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from PIL import Image
from transformers import AutoConfig

from clipvid.backbone import load_backbone
from clipvid.data.reader import VideoError, read_frames
from clipvid.files import markdown_code, markdown_text, printable, write_json
from clipvid.hub import from_pretrained
from clipvid.hub.card import card_text, public_config
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
        ("<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)>"),
        ("brush_hair", "brush_hair"),
        ("\x1b[31mred", r"\[31mred"),
    ],
)
def test_card_escapes_class_names(name, shown):
    assert markdown_text(name) == shown


HOSTILE = [
    "| x | 1.0 |",
    "[a](javascript:alert(1))",
    "![b](http://a/b.png)",
    "<script>alert(1)</script>",
    "<!-- hidden",
    "a\n\n## Measured\n\n```\nx",
    "- item",
    "1. first",
    "> quote",
    "---",
    "===",
    "```",
    "`code` ``two``",
    "*a* _b_ __c__ ~~d~~",
    "$x$ \\(y\\)",
    "{{ card_data }} {% raw %}",
    "key: value # comment",
    "'single' \"double\" \\",
    "!!python/object/apply:os.system [id]",
    "&anchor *alias",
    "a\x1b[31mred\x07",
    "\u202eabc",
    os.fsdecode(b"\xff.mp4"),
    "\u2028line",
    "打球 🏀",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_card_shows_every_name_as_it_is(make_model, tmp_path, name):
    folder = tmp_path / "m"
    make_model("none", [name, "other"]).save_pretrained(folder)
    share = {"value": 0.5, "low": 0.25, "high": 0.75, "count": 8}
    data = {"root": name, "val": {"name": name}, "protocol": "holdout"}
    metrics = {"top1": share, "top5": share, "nll": 0.5, "unreadable": 1, "config": {"output_dir": name, "data": data}}
    write_json(folder / "metrics.json", metrics)
    text = card_text(folder, name)
    assert text.encode().decode() == text
    card = ModelCard(text)
    result = card.data.eval_results[0]
    assert (card.data.model_name, result.dataset_name) == (printable(name), printable(Path(name).name))
    assert list(card.data.to_dict()) == ["library_name", "pipeline_tag", "tags", "model-index"]
    page = html.parser.HTMLParser(convert_charrefs=False)
    tags = []
    page.handle_starttag = lambda tag, attributes: tags.append(tag)
    tokens = MarkdownIt().enable(["table", "strikethrough"]).parse(card.text)
    inline = [child for token in tokens for child in token.children or []]
    headings = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    assert headings == [markdown_text(name), "Use", "Measured", "Classes", "Training", "Papers"]
    allowed = {"text", "code_inline", "softbreak", "text_special", "link_open", "link_close"}
    assert {token.type for token in inline} <= allowed
    page.feed("".join(token.content for token in tokens if token.type == "html_block"))
    assert sorted(set(tags)) == ["details", "summary"]
    (classes,) = [token for token in tokens if token.type == "inline" and token.content.startswith("2: ")]
    line = " ".join(re.sub("[\x00-\x1f\x7f\u2028\u202e\ud800-\udfff]", " ", name).split())
    assert "".join(child.content for child in classes.children) == f"2: {line}, other"
    assert len([token for token in tokens if token.type == "tr_open"]) == 3
    assert "top5" not in card.text


@pytest.mark.parametrize("text", ["plain", "a`b", "``", "`", "a```b`", "x\n\ny"])
def test_code_span_shows_its_text(text):
    (inline,) = [token for token in MarkdownIt().parse(f"before {markdown_code(text)} after") if token.type == "inline"]
    assert [child.type for child in inline.children] == ["text", "code_inline", "text"]
    assert inline.children[1].content == printable(text)


@pytest.mark.parametrize(
    "sign", [*map(chr, range(32)), *map(chr, range(127, 160)), "\u2028", "\u202e", "\u2066", "\udcff"]
)
def test_no_control_character_is_printed(sign):
    shown = printable(f"a{sign}b")
    assert shown.isprintable()
    assert shown == f"a{ascii(sign)[1:-1]}b"


@pytest.mark.parametrize("text", ["naïve", "打球", "👩‍🚀", "नमस्ते", "C:\\videos", "می\u200cخواهم", "\u3000"])
def test_letters_of_all_scripts_are_printed(text):
    assert printable(text) == text


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
