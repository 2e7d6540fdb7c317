"""Towers in parts: equal to open_clip's, with the same weights, and errors with a remedy."""

import json
import re
import shutil

import open_clip
import pytest
import torch
from conftest import clip_config, random_frames, shake, write_clip
from open_clip import pretrained as open_clip_pretrained
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from clipvid.backbone import NO_TEXT, build_backbone, load_backbone
from clipvid.layers.attention import SelfAttention
from clipvid.model.config import ModelConfig
from clipvid.model.factory import assemble_model

SMALL_TEXT = {"vocab_size": 50}
POOLER = {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2}
CUSTOM_BLOCK = {"qk_norm": True, "scale_heads": True, "scale_attn_inner": True, "scale_attn": True, "scale_fc": True}
TOWERS = {
    "plain": clip_config(text=SMALL_TEXT),
    "quick_gelu": clip_config(text=SMALL_TEXT, quick_gelu=True),
    "layer_scale": clip_config({"ls_init_value": 0.5}, SMALL_TEXT),
    "average_pool": clip_config({"pool_type": "avg"}, SMALL_TEXT),
    "norm_after_pool": clip_config({"pool_type": "avg", "final_ln_after_pool": True}, SMALL_TEXT),
    "attentional_pool": clip_config(POOLER, SMALL_TEXT),
    "no_norm_before": clip_config({"no_ln_pre": True}, SMALL_TEXT),
    "fixed_positions": clip_config({"pos_embed_type": "sin_cos_2d"}, SMALL_TEXT),
    "qk_norm": clip_config({"qk_norm": True}, SMALL_TEXT),
    "custom_block": clip_config(CUSTOM_BLOCK, SMALL_TEXT),
    "patch_dropout": clip_config({"patch_dropout": 0.5}, SMALL_TEXT),
    "wide_image": clip_config({"image_size": [48, 64]}, SMALL_TEXT),
    "custom_text": clip_config(text=SMALL_TEXT, custom_text=True),
    "logit_bias": clip_config(text=SMALL_TEXT, init_logit_bias=-3.0),
    "captions": clip_config(
        POOLER | {"output_tokens": True},
        {"vocab_size": 50, "context_length": 15, "embed_cls": True, "output_tokens": True},
        custom_text=True,
        multimodal_cfg={"width": 32, "context_length": 15, "vocab_size": 50, "heads": 1, "layers": 1},
    ),
}


@pytest.fixture(scope="module", params=TOWERS)
def folder(request, tmp_path_factory):
    """Folder of a random CLIP of every shape."""
    return write_clip(tmp_path_factory.mktemp("towers") / request.param, TOWERS[request.param])


@pytest.fixture(scope="module")
def clip(folder):
    """Load the CLIP of `folder` with open_clip."""
    return open_clip.create_model(f"local-dir:{folder}", require_pretrained=True).eval()


@pytest.fixture(scope="module")
def model(folder):
    """Build a video model without adapter around the CLIP of `folder`."""
    return assemble_model(load_backbone(f"local-dir:{folder}"), ModelConfig(adapter="none")).eval()


def frames_for(visual, num_frames):
    height, width = visual.image_size
    return torch.randn(2, num_frames, 3, height, width, generator=torch.Generator().manual_seed(7)).clamp(-1.2, 1.2)


def text_tokens(clip):
    """Return random ids of three texts that fill the tower's context."""
    return torch.randint(1, 50, (3, clip.context_length), generator=torch.Generator().manual_seed(8))


@torch.no_grad()
@pytest.mark.parametrize("num_frames", [1, 3])
def test_video_features_equal_mean_of_open_clip_features(clip, model, num_frames):
    frames = frames_for(clip.visual, num_frames)
    expected = clip.encode_image(frames.flatten(0, 1), normalize=False)
    expected = expected.unflatten(0, (2, num_frames)).mean(dim=1)
    assert expected.std() > 1e-2
    torch.testing.assert_close(model.encode_video(frames), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_text_features_equal_open_clip(clip, model):
    tokens = text_tokens(clip)
    expected = clip.encode_text(tokens, normalize=False)
    torch.testing.assert_close(model.encode_text(tokens), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_logits_equal_open_clip(clip, model):
    frames = frames_for(clip.visual, 1)
    tokens = text_tokens(clip)
    image, text = clip.encode_image(frames[:, 0], normalize=True), clip.encode_text(tokens, normalize=True)
    expected = clip.logit_scale.exp() * image @ text.T
    if getattr(clip, "logit_bias", None) is not None:
        expected = expected + clip.logit_bias
    torch.testing.assert_close(model(frames, text=tokens).logits, expected, rtol=1e-5, atol=1e-4)


def test_weights_map_back_to_open_clip_bitwise(folder, model):
    original = load_file(folder / "open_clip_model.safetensors")
    state = model.backbone.open_clip_state_dict()
    assert state.keys() == original.keys()
    assert all(torch.equal(state[key], original[key]) for key in original)


@torch.no_grad()
def test_saved_folder_loads_in_open_clip_and_here(model, clip, tmp_path):
    backbone = model.backbone
    backbone.save(tmp_path / "saved")
    name = f"local-dir:{tmp_path / 'saved'}"
    loaded = open_clip.create_model(name, require_pretrained=True).eval()
    frames = frames_for(clip.visual, 1)[:, 0]
    assert torch.equal(loaded.encode_image(frames), clip.encode_image(frames))
    again = load_backbone(name)
    assert again.fingerprint() == backbone.fingerprint()
    assert (again.mean, again.std) == (backbone.mean, backbone.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))


@torch.no_grad()
def test_named_tower_equals_open_clips():
    backbone = load_backbone("ViT-B-32", "random")
    assert (backbone.num_heads, backbone.image_size, backbone.vision.grid) == (12, 224, (7, 7))
    assert not backbone.is_public
    with torch.device("meta"):
        clip = open_clip.CLIP(**open_clip.get_model_config("ViT-B-32")).eval()
    clip.load_state_dict(backbone.open_clip_state_dict(), assign=True)
    clip.attn_mask = backbone.text.clip.attn_mask
    model = assemble_model(backbone, ModelConfig(adapter="none")).eval()
    frames = random_frames(1, 2, 224)
    expected = clip.encode_image(frames[0]).mean(dim=0, keepdim=True)
    torch.testing.assert_close(model.encode_video(frames), expected, rtol=1e-5, atol=1e-5)
    tokens = open_clip.get_tokenizer("ViT-B-32")(["a cat", "a dog barking"])
    features = model.encode_text(["a cat", "a dog barking"])
    torch.testing.assert_close(features, clip.encode_text(tokens), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_split_attention_equals_fused():
    fused = torch.nn.MultiheadAttention(48, 3, batch_first=True)
    shake(fused)
    x = torch.randn(2, 5, 48)
    expected = fused(x, x, x, need_weights=False)[0]
    torch.testing.assert_close(SelfAttention.from_fused(fused)(x), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("size", [32, 96])
def test_image_size_resamples_positions_like_open_clip(clip_folder, tmp_path, size):
    name = f"local-dir:{clip_folder}"
    backbone = load_backbone(name, image_size=size)
    assert (backbone.image_size, backbone.vision.grid) == (size, (size // 16, size // 16))
    clip = open_clip.create_model(name, force_image_size=size).eval()
    frames = random_frames(2, 2, size)
    expected = clip.encode_image(frames.flatten(0, 1)).unflatten(0, (2, 2)).mean(dim=1)
    model = assemble_model(backbone, ModelConfig(adapter="none")).eval()
    torch.testing.assert_close(model.encode_video(frames), expected, rtol=1e-5, atol=1e-5)
    backbone.save(tmp_path / "resized")
    again = load_backbone(f"local-dir:{tmp_path / 'resized'}")
    assert (again.image_size, again.fingerprint()) == (size, backbone.fingerprint())
    assert load_backbone(name).image_size == 64


def test_weights_in_half_precision_take_another_image_size(tmp_path):
    load_backbone("tiny").save(tmp_path, torch.float16)
    half = load_backbone(f"local-dir:{tmp_path}", image_size=72).vision.visual.positional_embedding
    full = load_backbone("tiny", image_size=72).vision.visual.positional_embedding
    assert half.shape == (1 + 9 * 9, 128)
    assert torch.equal(half, full)


@torch.no_grad()
def test_uint8_frames_equal_normalized_floats(make_model):
    model = make_model()
    pixels = torch.randint(0, 256, (2, 3, 3, 64, 64), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.25)))
    floats = (pixels.float() / 255 - mean) / std
    torch.testing.assert_close(model.encode_video(pixels), model.encode_video(floats), rtol=1e-5, atol=1e-6)


def test_fingerprint_follows_every_weight(clip_folder):
    backbone = load_backbone(f"local-dir:{clip_folder}")
    seen = {backbone.fingerprint(), load_backbone(f"local-dir:{clip_folder}").fingerprint()}
    assert len(seen) == 1
    for parameter in (backbone.blocks[1].attn.k.bias, backbone.text.clip.logit_scale, backbone.vision.visual.proj):
        with torch.no_grad():
            parameter.flatten()[-1] += 1e-3
        seen.add(backbone.fingerprint())
    assert len(seen) == 4


@torch.no_grad()
def test_build_backbone_without_text_tower(clip_folder):
    original = load_backbone(f"local-dir:{clip_folder}")
    vision = {key: value for key, value in original.open_clip_state_dict().items() if key.startswith("visual.")}
    config = original.config | {"text_cfg": NO_TEXT}
    model = assemble_model(build_backbone(config, vision, "no-text"), ModelConfig(adapter="none")).eval()
    reference = assemble_model(original, ModelConfig(adapter="none")).eval()
    frames = random_frames()
    assert torch.equal(model.encode_video(frames), reference.encode_video(frames))
    with pytest.raises(RuntimeError, match="no text tower"):
        model.encode_text(torch.zeros(1, 1, dtype=torch.long))


# Errors


@pytest.mark.parametrize("name", ["ViT-B-33", "no such tower"])
def test_unknown_name_is_refused(name):
    with pytest.raises(ValueError, match=rf"unknown backbone '{name}'.*: expected tiny, a name of"):
        load_backbone(name)


def test_unknown_tag_error_lists_known_tags():
    with pytest.raises(ValueError, match=r"ViT-B-32 has no weights 'laion3b'.*laion2b_s34b_b79k"):
        load_backbone("ViT-B-32", "laion3b")


def test_own_weights_and_a_tag_are_refused(clip_folder):
    with pytest.raises(ValueError, match="includes its weights; remove pretrained='openai'"):
        load_backbone(f"local-dir:{clip_folder}", "openai")


def test_failed_download_error_lists_sources_and_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(open_clip_pretrained, "hf_hub_download", _offline)
    with pytest.raises(RuntimeError, match=r"ViT-B-32, pretrained='laion2b_s34b_b79k'") as error:
        load_backbone("ViT-B-32", "laion2b_s34b_b79k")
    for advice in ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "pretrained=/path/to/weights", "local-dir:/path"):
        assert advice in str(error.value)


def _offline(*args, **kwargs):
    raise OSError("no network")


def test_unreachable_hub_error_has_remedy():
    with pytest.raises(RuntimeError, match=r"hf-hub:nobody/nothing could not be loaded(.|\n)*local-dir:/path"):
        load_backbone("hf-hub:nobody/nothing")


def test_config_with_tokenizer_code_is_refused(tmp_path):
    """Such a config may come with a repository of any author."""
    text = {"hf_tokenizer_name": "x", "tokenizer_kwargs": {"trust_remote_code": True}}
    folder = write_clip(tmp_path / "clip", clip_config())
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= text
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Tok: pass\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": [None, "code.Tok"]}}))
    with pytest.raises(ValueError, match=r"passes \['trust_remote_code'\] to the tokenizer, which could run code"):
        load_backbone(f"local-dir:{folder}")
    del config["model_cfg"]["text_cfg"]["tokenizer_kwargs"]
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match="its tokenizer could not be loaded"):
        load_backbone(f"local-dir:{folder}").text.tokenize(["a"])
    assert not (tmp_path / "ran").exists()


def test_transformers_tokenizer_is_saved_with_folder(tmp_path):
    words = Tokenizer(WordLevel({"[UNK]": 0, "a": 1, "ball": 2, "[PAD]": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    folder = write_clip(tmp_path / "clip", clip_config(text={"hf_tokenizer_name": "somebody/words"}))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    backbone = load_backbone(f"local-dir:{folder}")
    backbone.save(tmp_path / "saved")
    again = load_backbone(f"local-dir:{tmp_path / 'saved'}")
    assert torch.equal(again.text.tokenizer(["a ball"]), backbone.text.tokenizer(["a ball"]))
    assert again.fingerprint() == backbone.fingerprint()


@pytest.mark.parametrize("missing", ["folder", "config", "weights"])
def test_incomplete_local_folder_is_refused(clip_folder, tmp_path, missing):
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    files = {"config": "open_clip_config.json", "weights": "open_clip_model.safetensors"}
    if missing == "folder":
        shutil.rmtree(folder)
    else:
        (folder / files[missing]).unlink()
    with pytest.raises(RuntimeError, match=f"local-dir:{re.escape(str(folder))} could not be loaded"):
        load_backbone(f"local-dir:{folder}")


def test_weights_of_another_shape_are_refused(clip_folder, tmp_path):
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["width"] = 96
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match=r"could not be loaded(.|\n)*size mismatch"):
        load_backbone(f"local-dir:{folder}")


def test_weights_of_another_tower_error_lists_keys(little_tower, tmp_path):
    other = open_clip.create_model(little_tower, load_weights=False).state_dict()
    other["visual.proj"], other["visual.extra"] = torch.zeros(3, 5), other.pop("visual.ln_post.bias")
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(RuntimeError) as refused:
        load_backbone(little_tower, str(tmp_path / "other.safetensors"))
    for output in (r"visual\.proj is \(3, 5\), expected \(", "missing visual.ln_post.bias", "unexpected visual.extra"):
        assert re.search(output, str(refused.value))


def test_resnet_tower_is_refused():
    with pytest.raises(
        ValueError, match=r"backbone 'RN50' has a ModifiedResNet image tower without ViT blocks; supported: .*ViT-B-32"
    ):
        load_backbone("RN50", "random")


@pytest.fixture
def little_tower(tmp_path):
    """Register a small tower in open_clip by name, like a built-in one."""
    (tmp_path / "Little.json").write_text(json.dumps(clip_config(text=SMALL_TEXT)))
    open_clip.add_model_config(tmp_path / "Little.json")
    yield "Little"
    open_clip.factory._MODEL_CONFIG_PATHS.remove(tmp_path / "Little.json")
    open_clip.factory._rescan_model_configs()


def test_named_tower_without_weights_warns(little_tower, recwarn):
    with pytest.warns(UserWarning, match="Little has RANDOM weights"):
        backbone = load_backbone(little_tower)
    assert not backbone.is_public
    recwarn.clear()
    load_backbone(little_tower, "random")
    assert not [warning for warning in recwarn if "RANDOM" in str(warning.message)]


def test_named_tower_takes_weights_from_a_file(little_tower, tmp_path):
    source = write_clip(tmp_path / "source", clip_config(text=SMALL_TEXT))
    backbone = load_backbone(little_tower, str(source / "open_clip_model.safetensors"))
    assert backbone.fingerprint() == load_backbone(f"local-dir:{source}").fingerprint()
    assert not backbone.is_public


@torch.no_grad()
@pytest.mark.parametrize("quick_gelu", [True, False])
def test_tag_sets_quick_gelu(little_tower, tmp_path, monkeypatch, quick_gelu):
    """OpenAI's tags do so on towers whose config has plain GELU. A saved copy keeps it."""
    source = write_clip(tmp_path / "source", clip_config(text=SMALL_TEXT, quick_gelu=quick_gelu))
    weights = str(source / "open_clip_model.safetensors")
    tags = {little_tower: {"original": {"url": "https://example.invalid/a.pt", "hf_hub": "", "quick_gelu": quick_gelu}}}
    monkeypatch.setattr(open_clip_pretrained, "_PRETRAINED", tags)
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *args, **kwargs: weights)
    backbone = load_backbone(little_tower, "original")
    assert backbone.is_public
    backbone.save(tmp_path / "saved")
    expected = open_clip.create_model(f"local-dir:{source}").eval()
    saved = open_clip.create_model(f"local-dir:{tmp_path / 'saved'}").eval()
    model = assemble_model(backbone, ModelConfig(adapter="none")).eval()
    frames = random_frames(2, 1)
    features = expected.encode_image(frames[:, 0])
    torch.testing.assert_close(model.encode_video(frames), features, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(saved.encode_image(frames[:, 0]), features, rtol=1e-5, atol=1e-5)
