"""Saving over an older model: replaced completely or not at all, and foreign files stay."""

import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import SMALL, shake

from clipvid import files
from clipvid.hub.loading import from_pretrained
from clipvid.model import saving

ILA = {"name": "ila", **SMALL["ila"]}
LORA = ["adapters", {"name": "lora", "rank": 2}]
FOREIGN = ["backbone/notes.txt", "lora/mine.safetensors", "README.md", "checkpoints/state.pt", "lora/deep/file"]


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def put_foreign_files(folder: Path) -> dict[str, bytes]:
    for name in FOREIGN:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return {name: name.encode() for name in FOREIGN}


def test_saving_keeps_foreign_files(make_model, tiny_folder, tmp_path):
    folder = tmp_path / "saved"
    foreign = put_foreign_files(folder)
    make_model(ILA, ["a", "b"], tune=LORA).save_pretrained(folder)
    both = content(folder)
    assert foreign.items() <= both.items()
    assert {"lora/adapter_model.safetensors", "backbone/open_clip_model.safetensors"} <= both.keys()
    make_model(ILA, ["a", "b"], is_public=True).save_pretrained(folder)
    own = {"config.json", "model.safetensors", "video_preprocessor_config.json"}
    assert content(folder).keys() == own | foreign.keys()
    from_pretrained(folder)


@pytest.mark.parametrize(
    "record",
    [b"no json", b"[]", b'{"model_type": "vit", "files": {"lora/mine.safetensors": ""}}', b"[" * 100_000],
    ids=["no json", "list", "another model", "nested"],
)
def test_saving_into_other_folder_keeps_files(make_model, tmp_path, record):
    foreign = put_foreign_files(tmp_path)
    (tmp_path / "config.json").write_bytes(record)
    make_model(ILA, tune=LORA).save_pretrained(tmp_path)
    assert foreign.items() <= content(tmp_path).items()


@pytest.mark.parametrize(
    "name", ["../precious", "/precious", "lora/../../precious", "lora/..", "checkpoints/state.pt", "README.md", "lora"]
)
def test_config_cannot_delete_foreign_files(make_model, tmp_path, name):
    folder = tmp_path / "saved"
    (tmp_path / "precious").write_bytes(b"kept")
    make_model(ILA, tune=LORA).save_pretrained(folder)
    foreign = put_foreign_files(folder)
    record = json.loads((folder / "config.json").read_text())
    record["files"][name] = record["backbone"]["files"] = [name]
    (folder / "config.json").write_text(json.dumps(record))
    make_model(ILA).save_pretrained(folder)
    assert (tmp_path / "precious").read_bytes() == b"kept"
    assert foreign.items() <= content(folder).items()


@pytest.mark.parametrize("existing", [True, False])
def test_failed_save_changes_nothing(make_model, tmp_path, monkeypatch, existing):
    """The n-th write or rename fails, for every n."""
    folder = tmp_path / "saved"
    new = make_model(ILA, ["a", "b"])
    shake(new.encoder.layers[0].adapters)
    if existing:
        make_model(ILA, ["a", "b"], tune=LORA).save_pretrained(folder)
    before, failures = content(tmp_path), 0
    while True:
        calls = 0

        def failing(function, at=failures):
            def call(*args, **kwargs):
                nonlocal calls
                calls += 1
                if calls == at + 1:
                    raise OSError("disk full")
                return function(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", failing(Path.replace))
            patch.setattr(Path, "write_text", failing(Path.write_text))
            patch.setattr(Path, "chmod", failing(Path.chmod))
            patch.setattr(saving, "save_file", failing(safetensors.torch.save_file))
            patch.setattr(saving, "hash_file", failing(files.hash_file))
            try:
                new.save_pretrained(folder)
                break
            except OSError as error:
                assert "disk full" in str(error)  # noqa: PT017
        assert content(tmp_path) == before, f"after failure {failures}"
        assert folder.exists() == existing
        failures += 1
    assert failures > 10
    assert torch.equal(
        from_pretrained(folder).saved_state()["encoder.layers.0.adapters.ila.message_fc.weight"],
        new.saved_state()["encoder.layers.0.adapters.ila.message_fc.weight"],
    )


@pytest.mark.skipif(os.name == "nt", reason="modes are POSIX")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_file_modes_follow_the_umask(make_model, tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        make_model(ILA, tune=LORA).save_pretrained(tmp_path / "saved")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "saved").rglob("*") if path.is_file()}
    assert set(modes.values()) == {mode}, modes
