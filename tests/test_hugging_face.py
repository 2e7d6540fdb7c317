"""Weights of transformers' `CLIPModel` and `SiglipModel`, read from folders that transformers wrote."""

import json
import shutil
from pathlib import Path

import open_clip
import pytest
import timm
import torch
import transformers
from conftest import clip_config, shake
from test_towers import create_little, frames_of

from clipvid.backbone import load_backbone
from clipvid.backbone.hugging_face import read_hugging_face
from clipvid.hub.loading import from_pretrained
from clipvid.model.config import ModelConfig
from clipvid.model.factory import assemble_model


@pytest.fixture
def saved(tmp_path) -> tuple[Path, transformers.CLIPModel]:
    """Create a random CLIPModel, saved too, that matches the open_clip configuration `little-clip`."""
    config = clip_config(text={"context_length": 77, "heads": 2})
    (tmp_path / "little-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "little-clip.json")
    vision = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2, "image_size": 64, "patch_size": 16}
    text = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "eos_token_id": 49407}
    sizes = {"vision_config": vision | {"intermediate_size": 256}, "text_config": text | {"intermediate_size": 128}}
    torch.manual_seed(0)
    model = transformers.CLIPModel(transformers.CLIPConfig(**sizes, projection_dim=32)).eval()
    shake(model)
    model.save_pretrained(tmp_path / "clip")
    return tmp_path / "clip", model


@torch.no_grad()
def test_clip_model_logits_equal_transformers(saved, tmp_path):
    folder, clip = saved
    backbone = load_backbone("little-clip", str(folder))
    model = assemble_model(backbone, ModelConfig("little-clip", str(folder), adapter="none", num_frames=1)).eval()
    frames = frames_of(backbone, 1)
    tokens = backbone.text.tokenize(["a dog", "someone playing the guitar", "swim"])
    expected = clip(input_ids=tokens, pixel_values=frames[0]).logits_per_image
    torch.testing.assert_close(model(frames, text=tokens).logits, expected, atol=1e-4, rtol=1e-4)
    model.set_labels(["one", "two"])
    model.save_pretrained(tmp_path / "saved")
    shutil.rmtree(folder)
    assert torch.equal(from_pretrained(tmp_path / "saved")(frames).logits, model(frames).logits)


def test_mismatched_weights_error_lists_keys(saved):
    folder, _ = saved
    with pytest.raises(RuntimeError, match=r"another model: .* is \(.*\), expected \(.*\); .* and \d+ more"):
        load_backbone("ViT-B-32", str(folder))
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="model of type 'bert' in 1 safetensors files; expected `clip`"):
        load_backbone("little-clip", str(folder))


@torch.no_grad()
def test_siglip_model_logits_equal_transformers(tmp_path, monkeypatch):
    """Uses open_clip's model, since SigLIP's tokenizer would require a download."""
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    vision = sizes | {"intermediate_size": 256, "image_size": 224, "patch_size": 16}
    text = sizes | {"intermediate_size": 256, "vocab_size": 100, "max_position_embeddings": 16, "projection_size": 64}
    torch.manual_seed(0)
    inputs = transformers.SiglipModel(transformers.SiglipConfig(vision_config=vision, text_config=text)).eval()
    shake(inputs)
    inputs.save_pretrained(tmp_path)
    state, quick_gelu = read_hugging_face(tmp_path)
    config = open_clip.get_model_config("ViT-B-16-SigLIP")
    little_text = {"context_length": 16, "vocab_size": 100, "width": 64, "heads": 2, "layers": 2}
    config |= {"embed_dim": 64, "text_cfg": config["text_cfg"] | little_text}
    monkeypatch.setattr(timm, "create_model", create_little)
    clip = open_clip.CustomTextCLIP(**{key: value for key, value in config.items() if key != "custom_text"}).eval()
    clip.load_state_dict(state)
    pixels, tokens = torch.randn(2, 3, 224, 224), torch.randint(1, 100, (3, 16))
    expected = inputs(input_ids=tokens, pixel_values=pixels).logits_per_image
    image, words = clip.encode_image(pixels, normalize=True), clip.encode_text(tokens, normalize=True)
    actual = clip.logit_scale.exp() * image @ words.T + clip.logit_bias
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    assert not quick_gelu
