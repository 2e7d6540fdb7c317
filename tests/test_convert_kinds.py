"""Released checkpoints of every kind: models equal re-statements of the networks, and files of other shapes fail."""

import json
import subprocess
import sys

import pytest
import torch
from published_networks import (
    CLIP,
    GRID,
    LENGTH,
    PATCH,
    VOCABULARY,
    XCLIP,
    MoTE,
    OverTime,
    STAdapter,
    ViFiCLIP,
    action_clip,
    mote,
)
from test_convert import small_checkpoint

from clipvid.backbone import build_backbone
from clipvid.convert import KINDS, convert_checkpoint, find_kind
from clipvid.convert.openai_names import clip_config
from clipvid.hub.loading import from_pretrained, load_model
from clipvid.model.prompts import TEMPLATES

FRAMES, SIDE = 4, GRID * PATCH
RELEASED = ["xclip", "vifi_clip", "action_clip", "mote", "st_adapter"]
PLACES = [("adapter_pre_mlp",), ("adapter_pre_attn",), ("adapter_pre_attn", "adapter_pre_mlp")]


def shaken(module, seed=0):
    """Return the module with noise on every parameter, so that no norm is the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def inputs():
    generator = torch.Generator().manual_seed(1)
    frames = torch.randn(2, FRAMES, 3, SIDE, SIDE, generator=generator)
    ids = torch.randint(1, VOCABULARY - 1, (5, LENGTH), generator=generator)
    ids[:, 7], ids[:, 8:] = VOCABULARY - 1, 0
    return frames, ids


def released(kind):
    """Return a checkpoint, the function of frames that gives its network's logits, and the CLIP that it came from."""
    torch.manual_seed(0)
    _, ids = inputs()
    if kind == "xclip":
        network = shaken(XCLIP(FRAMES))
        return {"model": network.state_dict(), "epoch": 30}, lambda clips: network(clips, ids), None
    if kind == "st_adapter":
        network = shaken(STAdapter(PLACES[2]))
        return {"model": network.state_dict(), "epoch": 1}, network, None
    clip = shaken(CLIP())
    if kind == "vifi_clip":
        network = shaken(ViFiCLIP(clip, ids))
        state = clip.state_dict()
        base = build_backbone(clip_config(state), state, "base")
        return {"model": network.state_dict()}, lambda clips: network(clips, ids), base
    if kind == "action_clip":
        over_time = shaken(OverTime())
        fusion = {f"module.{name}": value for name, value in over_time.state_dict().items()}
        checkpoint = {"epoch": 1, "model_state_dict": clip.state_dict(), "fusion_model_state_dict": fusion}
        return checkpoint, lambda clips: action_clip(clip, over_time, clips, ids), None
    head = shaken(MoTE())
    image = {key: value for key, value in clip.state_dict().items() if key.startswith(("visual.", "logit_scale"))}
    checkpoint = {"epoch": 1, "model_state_dict": image, "fusion_model_state_dict": head.state_dict()}
    return checkpoint, lambda clips: mote(clip, head, clips), None


def converted(kind, checkpoint, base=None):
    return convert_checkpoint(kind, checkpoint, None if kind == "xclip" else FRAMES, base)


def logits_of(model, frames, ids):
    return model(frames, text=ids if model.head.needs_text else None, normalized=True).logits


@pytest.mark.parametrize("kind", RELEASED)
def test_logits_and_gradients_equal_the_network(kind):
    checkpoint, network, base = released(kind)
    model = converted(kind, checkpoint, base)
    frames, ids = inputs()
    clips = [frames.clone().requires_grad_() for _ in range(2)]
    expected, actual = network(clips[0]), logits_of(model, clips[1], ids)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    probe = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    for logits in (expected, actual):
        (logits * probe).sum().backward()
    scale = clips[0].grad.abs().max()
    torch.testing.assert_close(clips[1].grad / scale, clips[0].grad / scale, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", RELEASED)
def test_saved_model_keeps_logits_pixels_and_license(kind, tmp_path):
    checkpoint, _, base = released(kind)
    model = converted(kind, checkpoint, base)
    model.save_pretrained(tmp_path)
    loaded = from_pretrained(tmp_path)
    frames, ids = inputs()
    assert torch.equal(logits_of(loaded, frames, ids), logits_of(model, frames, ids))
    assert torch.equal(loaded.pixel_mean, model.pixel_mean)
    assert loaded.origin == model.origin == KINDS[kind].origin
    assert loaded.preprocessing == model.preprocessing
    imagenet = torch.allclose(loaded.pixel_mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    assert imagenet == (kind in ("xclip", "vifi_clip"))


@pytest.mark.parametrize("kind", ["ila", *RELEASED])
def test_kind_is_recognized_by_names(kind):
    if kind == "ila":
        assert find_kind(small_checkpoint("k400")) == find_kind({"model": small_checkpoint("ssv2")}) == "ila"
        return
    assert find_kind(released(kind)[0]) == kind


@pytest.mark.parametrize(
    "checkpoint", [{}, {"model": {}}, {"model": CLIP().state_dict()}], ids=["empty", "none", "CLIP"]
)
def test_unknown_names_are_refused(checkpoint):
    with pytest.raises(ValueError, match=r"names in the checkpoint are those of no known kind \(ila, xclip"):
        convert_checkpoint("auto", checkpoint)


def state_of(kind, checkpoint):
    """Return the state dict whose names are special to the kind."""
    return checkpoint["fusion_model_state_dict" if kind in ("action_clip", "mote") else "model"]


MISSING = {
    "xclip": ["visual.transformer.resblocks.1.message_ln.bias", "prompts_generator.alpha", "ln_final.weight"],
    "vifi_clip": ["image_encoder.ln_post.bias", "text_encoder.text_projection"],
    "action_clip": ["module.transformer.resblocks.2.ln_1.weight"],
    "st_adapter": ["ln_pre.weight", "transformer.resblocks.1.adapter_pre_attn.fc2.bias", "fc.bias"],
    "mote": ["transformer.resblocks.1.attn.out_proj.bias", "transformer.resblocks.0.mlp.fc_up.1.weight"],
}
LAST = {
    "alpha": "alpha",
    "fc.bias": r"head\.linear\.bias",
    "fc2.bias": r"st_adapter\.up\.bias",
    "out_proj.bias": r"attn\.out\.bias",
    "fc_up.1.weight": "experts of",
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in MISSING.items() for name in names])
def test_missing_tensor_is_listed(kind, name):
    checkpoint, _, base = released(kind)
    state = state_of(kind, checkpoint)
    del state[name]
    listed = next((text for end, text in LAST.items() if name.endswith(end)), ".".join(name.split(".")[-2:]))
    with pytest.raises(ValueError, match=listed.removeprefix("text_encoder.")):
        converted(kind, checkpoint, base)


@pytest.mark.parametrize("kind", RELEASED)
@pytest.mark.parametrize("extra", ["prompt_learner.ctx", "visual.transformer.resblocks.0.gate.weight", "odd"])
def test_unexpected_tensor_is_listed(kind, extra):
    checkpoint, _, base = released(kind)
    state_of(kind, checkpoint)[extra] = torch.zeros(3)
    with pytest.raises(ValueError, match=extra):
        converted(kind, checkpoint, base)


@pytest.mark.parametrize("kind", RELEASED)
def test_entry_that_is_not_a_tensor_is_listed(kind):
    checkpoint, _, base = released(kind)
    state_of(kind, checkpoint)["note"] = "trained on a Tuesday"
    with pytest.raises(ValueError, match="note"):
        converted(kind, checkpoint, base)


@pytest.mark.parametrize("kind", ["vifi_clip", "action_clip", "mote", "st_adapter"])
def test_number_of_frames_is_needed_where_the_file_lacks_it(kind):
    checkpoint, _, base = released(kind)
    with pytest.raises(ValueError, match="do not contain the number of frames per clip: pass num_frames"):
        convert_checkpoint(kind, checkpoint, None, base)


def test_wrong_number_of_frames_is_refused():
    with pytest.raises(ValueError, match="num_frames=8, but the checkpoint was trained with 4"):
        convert_checkpoint("xclip", released("xclip")[0], 8)
    with pytest.raises(ValueError, match="num_frames=21: the checkpoint has positions for 1 to 20 frames"):
        convert_checkpoint("action_clip", released("action_clip")[0], 21)


def test_vifi_clip_needs_the_clip_it_came_from():
    checkpoint, _, _ = released("vifi_clip")
    with pytest.raises(
        ValueError, match=r"no token embeddings: name the CLIP .*--backbone ViT-B-16 --pretrained openai"
    ):
        converted("vifi_clip", checkpoint)


@pytest.mark.parametrize(("kind", "other"), [("action_clip", "mote"), ("mote", "action_clip"), ("xclip", "vifi_clip")])
def test_checkpoint_of_another_kind_is_refused(kind, other):
    with pytest.raises(ValueError, match=r"not an? .*checkpoint"):
        converted(kind, released(other)[0])


def test_unknown_kind_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"unknown kind 'xclop' .did you mean 'xclip'"):
        convert_checkpoint("xclop", {})


@torch.no_grad()
def test_positions_of_a_table_are_the_first_ones():
    checkpoint, network, _ = released("action_clip")
    model = converted("action_clip", checkpoint)
    frames, ids = inputs()
    torch.testing.assert_close(logits_of(model, frames[:, :2], ids), network(frames[:, :2]), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="clips of 24 frames, but there are positions for 20"):
        model(frames.repeat(1, 6, 1, 1, 1), text=ids, normalized=True)


def test_action_clip_has_sixteen_templates():
    assert len(set(TEMPLATES["action_clip"])) == 16
    assert all(template.count("{}") == 1 for template in TEMPLATES["action_clip"])


@torch.no_grad()
@pytest.mark.parametrize("adapted", [(1,), (0, 1)])
@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("kernel", [(3, 1, 1), (3, 3, 3)])
def test_st_adapter_at_every_place(places, adapted, kernel):
    network = shaken(STAdapter(places, adapted, kernel=kernel))
    model = convert_checkpoint("st_adapter", network.state_dict(), FRAMES)
    frames, _ = inputs()
    torch.testing.assert_close(model(frames, normalized=True).logits, network(frames), rtol=1e-5, atol=1e-5)
    counts = [len(layer.adapters) for layer in model.encoder.layers]
    assert counts == [len(places) if index in adapted else 0 for index in range(2)]


# The command


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "clipvid", "convert", *map(str, arguments)], capture_output=True, text=True
    )


@torch.no_grad()
def test_command_recognizes_the_file_prints_and_stores_the_license(tmp_path):
    checkpoint, network, _ = released("mote")
    torch.save(checkpoint, tmp_path / "x.pt")
    done = run("auto", "--checkpoint", tmp_path / "x.pt", "--num_frames", FRAMES, "--output_dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "MoTE (license Apache-2.0), 4 frames of 24 px" in done.stdout
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "The weights come from the release of MoTE" in card
    assert json.loads((tmp_path / "out" / "config.json").read_text())["origin"]["license"] == "Apache-2.0"
    model = load_model(str(tmp_path / "out"), labels=[f"class {index}" for index in range(7)])
    frames, _ = inputs()
    torch.testing.assert_close(model(frames, normalized=True).logits, network(frames), rtol=1e-5, atol=1e-5)


class Evil:
    def __reduce__(self):
        return print, ("code ran",)


def test_command_runs_no_code_of_a_file(tmp_path):
    torch.save({"model": Evil()}, tmp_path / "x.pth")
    done = run("auto", "--checkpoint", tmp_path / "x.pth", "--output_dir", tmp_path / "out")
    assert done.returncode != 0
    assert "x.pth is damaged, or has more than tensors and plain values" in done.stderr
    assert "weights_only" not in done.stderr
    assert "code ran" not in done.stdout
    assert not (tmp_path / "out").exists()
