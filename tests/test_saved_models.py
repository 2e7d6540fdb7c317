"""Model folders written before the modules were arranged in packages load with the same weights and logits."""

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from clipvid.adapters import ADAPTERS
from clipvid.hub import from_pretrained

SAVED = Path(__file__).parent / "saved_models"
RECORDED = load_file(SAVED / "logits.safetensors")
NAMES = sorted(path.name for path in SAVED.iterdir() if path.is_dir())


def test_every_adapter_has_a_saved_folder():
    assert set(ADAPTERS) <= set(NAMES)
    assert set(NAMES) == RECORDED.keys() - {"clip"}


@pytest.mark.parametrize(
    ("name", "option", "former"), [("shift", "order", "previous_first"), ("st_adapter", "place", "before_attention")]
)
def test_old_folder_keeps_options_whose_default_changed(name, option, former, tmp_path):
    """The option is written when the model is saved again."""
    assert f'"{option}"' not in (SAVED / name / "config.json").read_text()
    model = from_pretrained(SAVED / name)
    assert getattr(model.adapter_configs[name], option) == former != getattr(ADAPTERS[name].Config(), option)
    model.save_pretrained(tmp_path)
    assert getattr(from_pretrained(tmp_path).adapter_configs[name], option) == former
    config = transformers.AutoConfig.from_pretrained(SAVED / name)
    assert config.model["adapter"][0][option] == former


@pytest.mark.parametrize("name", NAMES)
def test_old_folder_loads_with_equal_weights_and_logits(name):
    model = from_pretrained(SAVED / name)
    weights = load_file(SAVED / name / "model.safetensors")
    state = model.saved_state()
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[key], weights[key]) for key in weights)
    with torch.no_grad():
        logits = model(RECORDED["clip"]).logits
    torch.testing.assert_close(logits, RECORDED[name], rtol=0, atol=1e-5)  # last digits depend on the processor
