"""Every ViT image tower in open_clip's list: equal to open_clip's, adapted, tuned and saved like the native ones."""

import copy
import functools
import re
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from conftest import SMALL, fresh_backbone, shake
from test_tuning import LORA, move, trained

from clipvid.adapters import ADAPTERS
from clipvid.backbone import Backbone, build_backbone, load_backbone
from clipvid.backbone.towers import NO_TEXT
from clipvid.hub.loading import from_pretrained
from clipvid.model.config import ModelConfig
from clipvid.model.factory import assemble_model
from clipvid.model.video_clip import VideoCLIP

KINDS = ("vit_", "eva", "vitamin_")  # prefixes of timm's names of ViTs; ViTamin's upper part is one
OTHERS = ("vit_relpos",)
create_timm_model = timm.create_model


def create_little(tower: str, **options) -> torch.nn.Module:
    """Create a tower with two blocks, 64 wide unless the stem fixes the width, instead of `timm.create_model`."""
    sizes = {"depth": 2} if "_mci_" in tower or "vitamin" in tower else {"depth": 2, "embed_dim": 64, "num_heads": 2}
    return create_timm_model(tower, **sizes, **options)


def vision_config(name: str) -> dict:
    return open_clip.get_model_config(name)["vision_cfg"]


def is_vit(name: str) -> bool:
    """Return True if open_clip's configuration of that name has an image tower of ViT blocks."""
    vision = vision_config(name)
    if "timm_model_name" in vision:
        return vision["timm_model_name"].startswith(KINDS) and not vision["timm_model_name"].startswith(OTHERS)
    return isinstance(vision["layers"], int)


LISTED = open_clip.list_models()  # before a test adds another
VITS = [name for name in LISTED if is_vit(name)]
# One configuration of each timm tower.
TIMM = sorted(
    {
        vision_config(name).get("timm_model_name"): name for name in VITS if "timm_model_name" in vision_config(name)
    }.values()
)
# One tower of each class of blocks, and with each kind of prefix and head.
CLASSES = ["ViT-B-16-SigLIP", "PE-Core-T-16-384", "EVA01-g-14", "EVA02-B-16", "EVA02-E-14", "MobileCLIP-B"]


# Heading in docs/choosing.md -> pattern of timm's tower names; other names are of other kinds.
FAMILIES = {
    "SigLIP, SigLIP2": "siglip",
    "ViTamin": "vitamin_",
    "EVA01, EVA02": "eva0?2?_",
    "PE-Core": "pe_core",
    "MobileCLIP-B, MobileCLIP2-B": "_mci_",
    "other ViTs of timm": "",
}


def tower_table() -> str:
    """Return a Markdown table of supported image towers in open_clip's list, with numbers of configurations."""
    actual: dict[str, list[str]] = {"open_clip's own ViT": []} | {family: [] for family in FAMILIES} | {"refused": []}
    for name in LISTED:
        timm_name = vision_config(name).get("timm_model_name")
        if not is_vit(name):
            family = "refused"
        elif timm_name is None:
            family = "open_clip's own ViT"
        else:
            family = next(family for family, part in FAMILIES.items() if re.search(part, timm_name))
        actual[family].append(name)
    lines = ["| image tower | configurations | such as |", "|---|---:|---|"]
    lines += [
        f"| {family} | {len(names)} | {', '.join(names[:: -(-len(names) // 4)])} |" for family, names in actual.items()
    ]
    return "\n".join(lines)


def both(name: str) -> tuple[torch.nn.Module, Backbone]:
    """Return open_clip's model with random weights and no text tower, and the backbone with the same weights."""
    full = open_clip.get_model_config(name)
    config = {key: full[key] for key in ("embed_dim", "vision_cfg", "quick_gelu") if key in full} | {
        "text_cfg": NO_TEXT
    }
    torch.manual_seed(0)
    clip = open_clip.CLIP(**copy.deepcopy(config)).eval()
    for parameter in clip.parameters():  # open_clip leaves some unset
        parameter.data.nan_to_num_(0.0).clamp_(-1, 1)
    shake(clip, 0.02)
    state = {key: value for key, value in clip.state_dict().items() if key.startswith("visual.")}
    return clip, build_backbone(config, state, name)


def little(name: str) -> tuple[torch.nn.Module, Backbone]:
    """Return `both`, 64 wide and two blocks deep. The large ones are not kept, since together they take 3 GB."""
    return (make_little if name in LARGE else kept_little)(name)


def make_little(name: str) -> tuple[torch.nn.Module, Backbone]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", create_little)
        return both(name)


kept_little = functools.cache(make_little)


def video_model(backbone: Backbone, num_frames: int = 2, **fields) -> VideoCLIP:
    torch.manual_seed(6)
    fields = {"adapter": "none", "head": "linear"} | fields
    backbone = copy.deepcopy(backbone, {id(backbone.text.tokenizer): backbone.text.tokenizer})
    return assemble_model(backbone, ModelConfig("little", num_frames=num_frames, **fields), 3).eval()


def frames_of(backbone: Backbone, num_frames: int = 2) -> torch.Tensor:
    frames = torch.randn(1, num_frames, 3, *backbone.vision.image_shape, generator=torch.Generator().manual_seed(2))
    return frames.clamp(-1.2, 1.2)


@torch.no_grad()
def check_equal(clip: torch.nn.Module, backbone: Backbone) -> None:
    """Check that the features of a clip's frames are open_clip's image features, and that weights are bitwise equal."""
    frames = frames_of(backbone)
    expected = clip.encode_image(frames[0])
    expected = expected[0] if isinstance(expected, tuple) else expected  # CoCa also returns its tokens
    actual = video_model(backbone).encoder(frames)

    scale = expected.abs().max()
    torch.testing.assert_close(actual.frame_features[0] / scale, expected / scale, atol=1e-5, rtol=0)
    grid = backbone.vision.grid
    assert actual.patch_tokens.shape == (1, 2, grid[0] * grid[1], backbone.vision.width)
    state = backbone.open_clip_state_dict()
    for key, value in clip.state_dict().items():
        if key.startswith("visual."):
            assert torch.equal(state[key], value), key


def test_the_list_is_not_empty():
    assert len(TIMM) > 25
    assert {"ViT-B-16", "coca_ViT-B-32", "ViT-B-16-SigLIP2-256", "PE-Core-L-14-336", "EVA02-L-14"} <= set(VITS)
    assert set(CLASSES) <= set(VITS)


@pytest.mark.skipif(open_clip.__version__ != "3.3.0", reason="the table in the docs is of open_clip 3.3.0")
def test_docs_have_the_table_of_towers():
    assert tower_table() in (Path(__file__).parent.parent / "docs" / "choosing.md").read_text()


LARGE = [name for name in TIMM if name.startswith("ViTamin")]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in TIMM]
)
def test_timm_tower_equals_open_clips(name):
    check_equal(*little(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", VITS)
def test_every_tower_of_the_list_equals_open_clips(name, monkeypatch):
    """Towers have their original width and two blocks."""
    monkeypatch.setattr(timm, "create_model", lambda tower, **options: create_timm_model(tower, depth=2, **options))
    whole = open_clip.get_model_config

    def cut(name):
        config = whole(name)
        config["vision_cfg"]["layers"] = 2
        return config

    monkeypatch.setattr(open_clip, "get_model_config", cut)
    check_equal(*both(name))


@pytest.mark.parametrize("names", [pytest.param(TIMM, marks=pytest.mark.slow), sorted({*TIMM} - {*LARGE})])
def test_block_classes_are_all_there(names):
    seen = {type(block.attn).__name__ for name in names for block in little(name)[1].blocks}
    assert seen == {type(block.attn).__name__ for name in CLASSES for block in little(name)[1].blocks}
    posts = {block.post_norm for name in CLASSES for block in little(name)[1].blocks}
    assert posts == {True, False}
    assert {little(name)[1].vision.num_prefix for name in CLASSES} == {0, 1}


@torch.no_grad()
@pytest.mark.parametrize("adapter", [name for name in ADAPTERS if name != "none" and ADAPTERS[name].identity_at_init])
@pytest.mark.parametrize("name", CLASSES)
def test_fresh_adapter_changes_no_bit(name, adapter):
    _, backbone = little(name)
    frames = frames_of(backbone)
    choice = {"name": adapter, **SMALL.get(adapter, {})}
    expected = video_model(backbone).encode_video(frames)
    model = video_model(backbone, adapter=choice)
    assert torch.equal(model.encode_video(frames), expected)
    for part in model.encoder.adapters():
        shake(part)
    assert not torch.equal(model.encode_video(frames), expected)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("name", CLASSES)
def test_context_tokens_are_seen_and_dropped_or_refused(name, place):
    """Towers with rotary embeddings or without a class token refuse X-CLIP's message, with the reason."""
    _, backbone = little(name)
    choice = [{"name": "xclip", "layers": [place]}, "st_adapter"]
    reasons = ["has rotary position embeddings"] if getattr(backbone.blocks[0], "rope", None) is not None else []
    reasons += ["reads the class token of each frame, but .* has none"] if backbone.vision.num_prefix == 0 else []
    if reasons:
        with pytest.raises(ValueError, match="|".join(reasons)):
            video_model(backbone, adapter=choice)
        return
    model, frames = video_model(backbone, adapter=choice), frames_of(backbone, 3)
    plain = video_model(backbone)
    actual = model.encoder(frames, trace=True)
    assert actual.patch_tokens.shape == plain.encoder(frames).patch_tokens.shape
    assert actual.traces[f"xclip.{place}"]["attention"].shape == (1, 3, 3)
    assert not torch.allclose(actual.frame_features, plain.encoder(frames).frame_features)
    actual.frame_features.square().sum().backward()
    message = model.encoder.layers[place].adapters["xclip"]
    assert all(value.grad.abs().max() > 0 for key, value in message.named_parameters() if not key.endswith("k.bias"))


@pytest.mark.parametrize("name", CLASSES)
def test_lora_adapts_attention_of_every_tower(name):
    _, backbone = little(name)
    frames = frames_of(backbone)
    model = video_model(backbone, tune=[LORA])
    assert len(trained(model)) == 2 * 4 * 2  # blocks, linears, A and B
    with torch.no_grad():
        assert torch.equal(model.encode_video(frames), video_model(backbone).encode_video(frames))
    move(model)
    model.encode_video(frames).square().mean().backward()
    assert all(value.grad.abs().max() > 0 for value in model.parameters() if value.requires_grad)
    with torch.no_grad():
        before = model.encode_video(frames)
        assert not torch.equal(before, video_model(backbone).encode_video(frames))
        model.merge_lora()
        scale = before.abs().max()
        torch.testing.assert_close(model.encode_video(frames) / scale, before / scale, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", CLASSES)
def test_partial_trains_last_block_and_head(name):
    _, backbone = little(name)
    model = video_model(backbone, tune=[{"name": "partial", "blocks": 1}])
    others = {name for name in trained(model) if not name.startswith("encoder.layers.1.block.")}
    assert others < trained(model)
    assert all(name.startswith("encoder.tower.visual.") for name in others)
    heads = ("trunk.norm", "trunk.fc_norm", "trunk.attn_pool", "trunk.head", "visual.head")
    assert all(any(head in name for head in heads) for name in others)


@torch.no_grad()
@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "EVA02-B-16"])
def test_timm_model_round_trip(name, tmp_path, monkeypatch):
    monkeypatch.setattr(timm, "create_model", create_little)
    _, backbone = little(name)
    model = move(video_model(backbone, adapter="sifa", tune=["adapters", "head", LORA]))
    model.set_labels(["one", "two", "three"])
    model.save_pretrained(tmp_path)
    loaded, frames = from_pretrained(tmp_path), frames_of(backbone)
    assert torch.equal(loaded(frames).logits, model(frames).logits)
    assert loaded.backbone.fingerprint() == backbone.fingerprint()
    again = fresh_backbone(f"local-dir:{tmp_path / 'backbone'}")
    assert again.vision.num_prefix == backbone.vision.num_prefix


@torch.no_grad()
@pytest.mark.parametrize("name", CLASSES)
def test_timm_tower_of_another_image_size(name, tmp_path, monkeypatch):
    monkeypatch.setattr(timm, "create_model", create_little)
    clip, backbone = both(name)
    backbone.save(tmp_path / "native")
    patch = backbone.image_size // backbone.vision.grid[0]
    size = patch * (backbone.vision.grid[0] - 3)
    resized = load_backbone(f"local-dir:{tmp_path / 'native'}", image_size=size)
    assert resized.vision.image_shape == (size, size)
    clip.visual.set_input_size((size, size))
    check_equal(clip, resized)

    resized.save(tmp_path / "resized")
    again = load_backbone(f"local-dir:{tmp_path / 'resized'}")
    assert again.fingerprint() == resized.fingerprint()
    check_equal(clip, again)
    with pytest.raises(ValueError, match=f"image_size={size - 1} is not a multiple of the tower's patch size, {patch}"):
        load_backbone(f"local-dir:{tmp_path / 'native'}", image_size=size - 1)


@pytest.mark.parametrize(
    "name",
    ["RN50", "convnext_base", "vit_relpos_medium_patch16_cls_224", "swin_base_patch4_window7_224", "MobileCLIP-S1"],
)
def test_tower_without_vit_blocks_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"backbone '{name}' has .*SigLIP"):
        load_backbone(name, "random")
