"""Untrusted model folders: they fail in one line, without blocking, large allocations or leaving the folder."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import posix_only
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoVideoProcessor

from clipvid import ClipVidConfig, InputError
from clipvid.files import hash_file
from clipvid.hub import from_pretrained
from clipvid.hub.strict import MAX_BYTES

LABELS = ["a", "b", "c"]
CONFIG, PIXELS, WEIGHTS = "config.json", "video_preprocessor_config.json", "model.safetensors"
TOWER, TOWER_CONFIG = "backbone/open_clip_model.safetensors", "backbone/open_clip_config.json"
BIG_HEAD = {"name": "linear", "num_classes": 10**9}
LORA = "lora/adapter_model.safetensors"


@pytest.fixture(scope="module")
def whole(make_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "model"
    make_model("ila", LABELS, head="linear", tune=["adapters", "head", {"name": "lora", "rank": 2}]).save_pretrained(
        folder
    )
    return folder


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "model")


def edit(path: Path, change) -> None:
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def refused(folder: Path, message: str) -> None:
    with pytest.raises((InputError, FileNotFoundError), match=message) as error:
        from_pretrained(folder)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", [CONFIG, PIXELS, TOWER_CONFIG])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' appears twice"),
        ('{"a": [{"b": 1, "b": 2}]}', "the key 'b' appears twice"),
        ('{"a": ' + "[" * 40 + "]" * 40 + "}", "nested too deep"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deep|is not JSON"),
        ('{"a": NaN}', "NaN is not a finite number"),
        ('{"a": -Infinity}', "-Infinity is not a finite number"),
        ('{"a": 1e999}', "1e999 is not a finite number"),
        ('{"a": ' + "9" * 5000 + "}", "is not JSON"),
        ("[]", "expected a JSON object"),
    ],
    ids=["twice", "twice inside", "deep", "deeper", "nan", "infinity", "overflow", "digits", "list"],
)
def test_json_is_read_strictly(folder, name, text, message):
    (folder / name).write_text(text)
    refused(folder, message)


@pytest.mark.parametrize("name", [CONFIG, PIXELS, TOWER_CONFIG])
def test_json_of_any_length_is_refused_unread(folder, name):
    os.truncate(folder / name, MAX_BYTES + 1)
    refused(folder, f"expected at most {MAX_BYTES}")


@posix_only
@pytest.mark.parametrize("name", [CONFIG, PIXELS, WEIGHTS, LORA, TOWER, TOWER_CONFIG])
def test_only_regular_files_are_opened(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    refused(folder, "is a pipe or device|is incomplete")


@pytest.mark.parametrize("name", [CONFIG, PIXELS, WEIGHTS, LORA, TOWER, TOWER_CONFIG])
def test_links_out_of_the_folder_are_refused(folder, tmp_path, name):
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    refused(folder, "is a link out of the model folder")


@pytest.mark.parametrize("subfolder", ["", "run", "runs/best"])
def test_links_of_the_hubs_cache_are_followed(folder, tmp_path, subfolder):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123" / subfolder
    blobs = tmp_path / "models--a--b" / "blobs"
    shutil.copytree(folder, snapshot)
    blobs.mkdir()
    for number, path in enumerate([path for path in sorted(snapshot.rglob("*")) if path.is_file()]):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))
    assert from_pretrained(snapshot).labels == LABELS
    assert AutoConfig.from_pretrained(snapshot).labels == LABELS
    assert AutoVideoProcessor.from_pretrained(snapshot).image_size == 64


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("format_version", lambda record: record.update(format_version=True)),
        ("num_classes", lambda record: record.update(num_classes=True)),
        ("num_classes", lambda record: record.update(num_classes="3")),
        ("num_classes", lambda record: record.update(num_classes=-1)),
        ("num_classes", lambda record: record.update(num_classes=0)),
        ("format_version", lambda record: record.update(format_version=-1)),
        ("labels", lambda record: record.update(labels=[1, 2, 3])),
        ("labels", lambda record: record.update(labels="abc")),
        ("templates", lambda record: record.update(templates=None)),
        ("files", lambda record: record.update(files={"model.safetensors": 1})),
        ("backbone.sha256", lambda record: record["backbone"].update(sha256=1)),
        ("backbone.embedded", lambda record: record["backbone"].update(embedded=1)),
        ("backbone.name", lambda record: record["backbone"].update(name=None)),
        ("model.num_frames", lambda record: record["model"].update(num_frames=10**9)),
        ("model.image_size", lambda record: record["model"].update(image_size=10**6)),
        ("model.adapter.hidden", lambda record: record["model"]["adapter"][0].update(hidden=10**6)),
        ("model.head.num_classes", lambda record: record["model"].update(head=BIG_HEAD)),
        ("model.pooling.layers", lambda record: record["model"].update(pooling={"name": "mit", "layers": 10**6})),
        ("model.tune.rank", lambda record: record["model"].update(tune=[{"name": "lora", "rank": 10**7}])),
        ("model.num_classes", lambda record: record.update(num_classes=10**9)),
        ("num_frames", lambda record: record["model"].update(num_frames=True)),
    ],
)  # fmt: skip
def test_config_has_a_schema(folder, name, change):
    edit(folder / CONFIG, change)
    refused(folder, name)


@pytest.mark.parametrize(
    ("part", "option", "value"),
    [("vision_cfg", "width", 10**6), ("vision_cfg", "layers", 10**6), ("vision_cfg", "image_size", 10**5),
     ("text_cfg", "vocab_size", 10**9), ("text_cfg", "width", 10**6), ("vision_cfg", "mlp_ratio", 1e6),
     ("text_cfg", "context_length", 10**8)],
)  # fmt: skip
def test_sizes_of_a_tower_are_those_of_its_weights(folder, part, option, value):
    edit(folder / TOWER_CONFIG, lambda record: record["model_cfg"][part].update({option: value}))
    refused(folder, f"{part}.{option}=")


@pytest.mark.parametrize("name", [WEIGHTS, LORA, TOWER])
@pytest.mark.parametrize("kind", ["nan", "infinity", "integers"])
def test_nonfinite_weights_are_refused(folder, name, kind):
    state = load_file(folder / name)
    key = max(state, key=lambda key: state[key].numel() if state[key].is_floating_point() else 0)
    if kind == "integers":
        state[key] = state[key].to(torch.int32)
    else:
        state[key].view(-1)[-1] = float(kind[:3])
    save_file(state, folder / name, metadata={"format": "pt"})
    if name != TOWER:
        edit(folder / CONFIG, lambda record: record["files"].update({name: hash_file(folder / name)}))
    refused(folder, "not finite numbers" if kind != "integers" else r"is torch\.int32|another backbone")


@pytest.mark.parametrize(
    "change",
    [{"num_frames": 10**9}, {"num_frames": True}, {"image_size": 0}, {"resize": "big"}, {"sampling": {"x": 1}}],
    ids=str,
)  # fmt: skip
def test_preprocessor_file_has_a_schema(folder, change):
    edit(folder / PIXELS, lambda record: record.update(change))
    with pytest.raises(InputError, match=next(iter(change))):
        AutoVideoProcessor.from_pretrained(folder)


@pytest.mark.parametrize("depth", [33, 500, 900])
def test_json_deep_enough_to_end_recursion_is_refused(folder, depth):
    (folder / CONFIG).write_text('{"a": ' + '{"a": ' * depth + "1" + "}" * depth + "}")
    refused(folder, "nested too deep")


@pytest.mark.parametrize(
    ("key", "value"),
    [("mean", {}), ("mean", [0.5, 0.5]), ("std", ["a", "b", "c"]), ("std", [[1], 1, 1]), ("mean", 0.5), ("std", None)],
)
def test_pixel_constants_of_a_tower_are_three_numbers(folder, key, value):
    edit(folder / TOWER_CONFIG, lambda record: record["preprocess_cfg"].update({key: value}))
    refused(folder, f"preprocess_cfg.{key}=")


@pytest.mark.parametrize("value", [0.5, 1, "adapters", None, {"name": "lora"}, [["lora"]], [1]])
def test_tune_is_a_list_of_choices(folder, value):
    edit(folder / CONFIG, lambda record: record["model"].update(tune=value))
    refused(folder, "tune")


@pytest.mark.parametrize("key", ["dtype", "Embedded", "x" * 1000])
def test_entries_of_a_backbone_are_known(folder, key):
    edit(folder / CONFIG, lambda record: record["backbone"].update({key: {}}))
    refused(folder, rf"unknown entry 'backbone\.{key[:40]}")


def test_names_in_messages_are_shortened(folder):
    edit(folder / CONFIG, lambda record: record["model"].update(head="x" * 100_000))
    with pytest.raises(InputError) as error:
        from_pretrained(folder)
    assert len(str(error.value)) < 1500


@pytest.mark.parametrize("header", [b"x" * 90_000, b'{"' + b"a" * 90_000 + b'": 1}'], ids=["text", "key"])
def test_a_damaged_header_gives_a_short_message(folder, header):
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)
    edit(folder / CONFIG, lambda record: record["files"].update({WEIGHTS: hash_file(folder / WEIGHTS)}))
    with pytest.raises(InputError, match="not a safetensors file") as error:
        from_pretrained(folder)
    assert len(str(error.value)) < 1500


@pytest.mark.parametrize("text", ['"x": 3, "x": 4}', '"a": [NaN]}', '"a": {"b": 1, "b": 1}}', '"a": 1e999}'])
@pytest.mark.parametrize("kind", [ClipVidConfig, AutoVideoProcessor])
def test_classes_of_transformers_read_json_strictly(folder, text, kind):
    path = folder / (CONFIG if kind is ClipVidConfig else PIXELS)
    path.write_text(f"{path.read_text().rstrip()[:-1]}, {text}")
    with pytest.raises(InputError, match=r"appears twice|not a finite number"):
        kind.from_pretrained(folder)


@pytest.mark.parametrize("change", [{"dtype": "x"}, {"id2label": {"0": "z"}}, {"auto_map": {"AutoConfig": "evil.E"}}])
def test_entries_of_transformers_in_a_config_have_no_effect(folder, change):
    edit(folder / CONFIG, lambda record: record.update(change))
    assert AutoConfig.from_pretrained(folder).id2label == dict(enumerate(LABELS))


@pytest.mark.parametrize("change", [{"dtype": "x"}, {"num_frames": 0}, {"head": {"name": "linear", "dtype": "x"}}])
def test_transformers_checks_the_model_of_a_config(folder, change):
    edit(folder / CONFIG, lambda record: record["model"].update(change))
    for kind in (AutoConfig, ClipVidConfig):
        with pytest.raises(InputError, match=re.escape(str(folder / CONFIG))):
            kind.from_pretrained(folder)
