"""Untrusted model folders: loaded, or refused with an error for users."""

import random
import shutil
from pathlib import Path

import pytest
from test_checkpoint import mutate

import clipvid


@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_mutated_model_folder_is_loaded_or_refused(make_model, tmp_path: Path, count: int) -> None:
    folder = tmp_path / "model"
    model = make_model("ila", labels=["walking", "running"], pooling="mit")
    model.save_pretrained(folder)
    chance = random.Random(0)
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in (".json", ".safetensors")]
    for _ in range(count):
        path = chance.choice(files)
        whole = path.read_bytes()
        path.write_bytes(mutate(whole[:4096], chance) + whole[4096:])
        try:
            clipvid.from_pretrained(folder)
        except (ValueError, OSError, RuntimeError) as error:
            assert str(error)  # noqa: PT017
        path.write_bytes(whole)
    clipvid.from_pretrained(folder)
    shutil.rmtree(folder)
