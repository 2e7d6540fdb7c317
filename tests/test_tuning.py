"""Trained parts: LoRA by peft, context tokens, parts of towers, learning rates by layer; costs of frozen parts."""

import json
import re

import pytest
import torch
from conftest import SMALL, clip_config, random_frames, shake, write_clip
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from test_backbone import TOWERS, text_tokens
from test_saving import LABELS, edit_json
from torch._dynamo.testing import CompileCounter

from clipvid.backbone import load_backbone
from clipvid.hub.loading import from_pretrained
from clipvid.inference.bank import AdapterBank
from clipvid.training.optim import OptimConfig, build_optimizer, build_scheduler, describe_groups

ILA = {"name": "ila", **SMALL["ila"]}
LORA = {"name": "lora", "rank": 4, "alpha": 8}
BOTH = LORA | {"towers": ["image", "text"], "targets": ["q", "k", "v", "out", "c_fc", "c_proj"]}


def trained(model):
    return {name for name, value in model.named_parameters() if value.requires_grad}


@torch.no_grad()
def move(model, amount=0.05):
    """Add noise to every trained parameter, in place of training."""
    generator = torch.Generator().manual_seed(8)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(amount * torch.randn(parameter.shape, generator=generator))
    if model.labels:
        model.set_labels(model.labels, model.templates)
    return model


# LoRA


@torch.no_grad()
def test_fresh_lora_changes_no_bit(make_model):
    frames = random_frames()
    assert torch.equal(make_model(tune=[LORA]).encode_video(frames), make_model().encode_video(frames))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["plain", "custom_text", "captions"])
def test_text_tower_with_fresh_lora_gives_the_same_features(make_model, tmp_path, kind):
    folder = write_clip(tmp_path / "clip", TOWERS[kind])
    plain, lora = (make_model(folder=folder, tune=tune) for tune in ([], [BOTH]))
    tokens = text_tokens(plain.text.clip)
    torch.testing.assert_close(lora.encode_text(tokens), plain.encode_text(tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("lora", [LORA, BOTH], ids=["image", "both towers"])
def test_lora_trains_only_a_and_b(make_model, lora):
    model = make_model(labels=LABELS, tune=[lora]).train()
    blocks = ["encoder.layers.{}.block"] + ["text.clip.transformer.resblocks.{}"] * ("towers" in lora)
    linears = ["attn.q", "attn.k", "attn.v", "attn.out"] + ["mlp.c_fc", "mlp.c_proj"] * ("targets" in lora)
    depth = {"encoder": 2, "text": 1}
    expected = {
        f"{block.format(index)}.{linear}.lora_{side}.default.weight"
        for block in blocks
        for index in range(depth[block.split(".")[0]])
        for linear in linears
        for side in "AB"
    }
    assert trained(model) == expected
    move(model)
    model(random_frames()).logits.square().mean().backward()
    assert {name for name, value in model.named_parameters() if value.grad is not None} == expected
    assert all(value.grad.abs().max() > 0 for value in model.parameters() if value.requires_grad)


@torch.no_grad()
@pytest.mark.parametrize("is_public", [True, False])
@pytest.mark.parametrize(
    "tune", [["adapters", "head", LORA], [BOTH], [LORA, "layernorm", {"name": "partial", "blocks": 1}]], ids=str
)
def test_lora_round_trip_is_bitwise(make_model, tiny_folder, tmp_path, tune, is_public):
    model = move(make_model(ILA, LABELS, pooling="mit", tune=tune, is_public=is_public))
    model.save_pretrained(tmp_path)
    assert not any("lora_" in name for name in load_file(tmp_path / "model.safetensors"))
    assert not (tmp_path / "adapter_config.json").exists()
    loaded = from_pretrained(tmp_path)
    assert torch.equal(loaded(random_frames()).logits, model(random_frames()).logits)
    assert trained(loaded) == trained(model)
    loaded.save_pretrained(tmp_path / "again")
    for name in ("model.safetensors", "lora/adapter_model.safetensors", "lora/adapter_config.json"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@torch.no_grad()
def test_backbone_below_lora_keeps_its_fingerprint(make_model, tiny_folder, tmp_path):
    model = move(make_model(labels=LABELS, tune=[BOTH], is_public=True))
    model.save_pretrained(tmp_path)
    fingerprint = load_backbone("tiny").fingerprint()
    assert model.backbone.fingerprint() == fingerprint
    assert json.loads((tmp_path / "config.json").read_text())["backbone"]["sha256"] == fingerprint


@torch.no_grad()
def test_peft_reads_the_folder(make_model, tmp_path):
    model = move(make_model(labels=LABELS, tune=[LORA]))
    model.save_pretrained(tmp_path)
    plain = make_model(labels=LABELS)
    before = plain(random_frames()).logits
    read = PeftModel.from_pretrained(plain, tmp_path / "lora").eval()
    actual = read(random_frames()).logits
    assert torch.equal(actual, model(random_frames()).logits)
    assert not torch.equal(actual, before)


@torch.no_grad()
def test_lora_in_chosen_blocks_keeps_those_below_fixed(make_model, tiny_folder, tmp_path):
    model = move(make_model(labels=LABELS, tune=[LORA | {"layers": [-1]}], is_public=True))
    assert {name.split(".")[2] for name in trained(model)} == {"1"}
    assert model.frozen_depth() == 1
    model.save_pretrained(tmp_path)
    frames = random_frames()
    assert torch.equal(from_pretrained(tmp_path)(frames).logits, model(frames).logits)
    with pytest.raises(ValueError, match="out of range for a tower of 2 blocks"):
        make_model(tune=[LORA | {"layers": [2]}])


@pytest.mark.parametrize("lora", [LORA, BOTH], ids=["image", "both towers"])
def test_merged_lora_gives_equal_logits(make_model, tiny_folder, tmp_path, lora):
    model = move(make_model(ILA, LABELS, tune=["adapters", lora], is_public=True))
    frames = random_frames()
    before, clean = model(frames).logits, model.backbone
    fingerprint = clean.fingerprint()
    model.merge_lora()
    merged = model(frames).logits
    torch.testing.assert_close(merged, before, atol=1e-5, rtol=1e-5)
    assert not any(isinstance(module, LoraLayer) for module in model.modules())
    assert clean.fingerprint() == fingerprint != model.backbone.fingerprint()
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "lora").exists()
    loaded = from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(frames).logits, merged, atol=1e-6, rtol=1e-6)
    with pytest.raises(ValueError, match="the model has no LoRA to merge"):
        loaded.merge_lora()


@torch.no_grad()
def test_merging_includes_the_text_tower(make_model):
    model = make_model("none", LABELS, tune=[LORA | {"towers": ["text"], "dropout": 0.3}])
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.add_(0.2)
    frames = random_frames()
    fresh, before = model.label_features.clone(), model(frames).logits
    model.merge_lora()
    assert not torch.allclose(model.label_features, fresh, atol=1e-3)
    torch.testing.assert_close(model(frames).logits, before, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_saving_over_lora_removes_it(make_model, tmp_path):
    make_model(labels=LABELS, tune=[LORA]).save_pretrained(tmp_path)
    make_model(labels=LABELS).save_pretrained(tmp_path)
    assert not (tmp_path / "lora").exists()
    from_pretrained(tmp_path)


def test_damaged_lora_is_refused(make_model, tmp_path):
    make_model(labels=LABELS, tune=[LORA]).save_pretrained(tmp_path)
    weights = tmp_path / "lora" / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4])
    with pytest.raises(ValueError, match=r"lora/adapter_model.safetensors is damaged or was changed"):
        from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"is incomplete: it has no lora/adapter_model"):
        from_pretrained(tmp_path)
    weights.write_bytes(whole)
    edit_json(tmp_path / "config.json", lambda record: record["model"]["tune"][0].update(rank=2))
    with pytest.raises(ValueError, match=r"lora_A.weight is \(4, 64\), expected \(2, 64\)"):
        from_pretrained(tmp_path)


@torch.no_grad()
def test_models_with_and_without_lora_share_one_backbone(make_model, tmp_path):
    specs = {"one": [LORA], "plain": ["adapters"], "two": ["adapters", LORA], "context": ["coop"], "both": [BOTH]}
    frames = random_frames()
    for number, (name, tune) in enumerate(specs.items()):
        move(make_model("sifa", LABELS, tune=tune), 0.02 * (number + 1)).save_pretrained(tmp_path / name)
    bank = AdapterBank(from_pretrained(tmp_path / "one"), "one")
    before = {parameter.data_ptr() for parameter in bank.model._backbone_parameters()}
    for name in specs:
        if name != "one":
            bank.load_adapter(tmp_path / name, name)
    for name in [*specs, "one"]:
        bank.set_adapter(name)
        assert torch.equal(bank(frames).logits, from_pretrained(tmp_path / name)(frames).logits), name
        assert {parameter.data_ptr() for parameter in bank.model._backbone_parameters()} == before


@torch.no_grad()
def test_block_with_lora_is_one_graph(make_model):
    model = move(make_model("st_adapter", LABELS, tune=["adapters", LORA]))
    tokens = torch.randn(2, 3, 17, 64)
    layer = model.encoder.layers[1]
    whole = torch.compile(layer, backend="aot_eager", fullgraph=True)  # a graph break is an error
    torch.testing.assert_close(whole(tokens, (4, 4))[0], layer(tokens, (4, 4))[0])


def test_compiled_blocks_share_a_graph(make_model, tmp_path):
    counter, folder = CompileCounter(), write_clip(tmp_path / "deep", clip_config({"layers": 4}))
    models = [move(make_model(labels=LABELS, tune=[LORA], folder=folder)).train() for _ in range(2)]
    models[1].encoder.compile_blocks(backend=counter)
    for model in models:
        model(random_frames()).logits.square().mean().backward()
    assert counter.frame_count == 2  # the first block, below which there is nothing to train, and all others
    for plain, compiled in zip(*(model.parameters() for model in models), strict=True):
        if plain.requires_grad:
            torch.testing.assert_close(plain.grad, compiled.grad)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_encoder_gives_the_same_logits(make_model):
    model = move(make_model(ILA, LABELS, tune=["adapters", LORA]))
    expected = model(random_frames()).logits
    model.encoder.compile_blocks()
    torch.testing.assert_close(model(random_frames()).logits, expected, atol=1e-5, rtol=1e-5)


# Context


@torch.no_grad()
def test_context_starts_as_the_words_given(make_model):
    coop = make_model(tune=["coop"])
    coop.set_labels(LABELS)
    plain = make_model(labels=LABELS)
    plain.set_labels(LABELS, ["a video of a {}."])
    torch.testing.assert_close(coop.label_features, plain.label_features)


@torch.no_grad()
def test_context_round_trip(make_model, tmp_path):
    model = make_model(labels=LABELS, tune=[{"name": "coop", "tokens": 6, "init": "footage of"}]).train()
    assert trained(model) == {"context.vectors"}
    assert model.context.vectors.shape == (6, 32)
    before = model(random_frames()).logits
    with torch.enable_grad():
        model(random_frames()).logits.square().mean().backward()
    assert (model.context.vectors.grad.abs().amax(dim=1) > 0).all()
    model.context.vectors.sub_(0.1 * model.context.vectors.grad.sign())
    after = model.eval()(random_frames()).logits
    assert not torch.equal(after, before)
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == {"context.vectors"}
    assert torch.equal(from_pretrained(tmp_path)(random_frames()).logits, after)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tune": ["coop", "text"]}, "the text tower is trained whole"),
        ({"tune": [BOTH, "text"]}, "the text tower is trained whole"),
        ({"tune": ["coop"], "head": "linear"}, "a linear head does not use the text tower"),
        ({"tune": [{"name": "coop", "tokens": 2}]}, "has 4 tokens, more than tokens=2"),
        (
            {"tune": [{"name": "coop", "tokens": 12}]},
            "12 context tokens leave no room for ride_bike, play the guitar in",
        ),
        ({"tune": [LORA, "lora"]}, "each name may be listed once"),
        ({"tune": ["partial(2)"]}, "did you mean 'partial'"),
        ({"tune": [{"name": "partial", "blocks": 3}]}, "partial has blocks=3; the image tower has 2"),
        ({"tune": [{"name": "lora", "targets": ["qkv"]}]}, "expected a list of some of q, k, v, out, c_fc, c_proj"),
        (
            {"tune": [{"name": "coop", "tokens": 10**9}]},
            "tokens=1000000000; a text of this tower has 16 tokens in total",
        ),
        ({"tune": [{"name": "lora", "rank": 10**9}]}, "rank=1000000000 exceeds the width of every linear"),
        ({"tune": [{"name": "lora", "rank": 0}]}, "rank=0 must be at least 1"),
        ({"tune": [{"name": "lora", "r": 8}]}, "has no option 'r'"),
    ],
    ids=str,
)
def test_invalid_tuning_is_refused(make_model, fields, message):
    with pytest.raises(ValueError, match=message):
        make_model(labels=LABELS, **fields)


def test_templates_beside_a_context_are_refused(make_model):
    with pytest.raises(ValueError, match="`coop` learns the context of a class name"):
        make_model(tune=["coop"]).set_labels(LABELS, "ensemble")


def test_lora_names_the_tower_that_has_no_such_linears(make_model, tmp_path):
    folder = write_clip(tmp_path / "clip", clip_config({"qk_norm": True}))
    with pytest.raises(
        ValueError, match="lora: the image tower's attention or MLP is not supported and has no linear q"
    ):
        make_model(folder=folder, tune=["lora"])


# Frozen parts cost nothing


def test_frozen_lower_blocks_keep_no_graph(make_model):
    seen = {}

    def watch(model):
        for index, layer in enumerate(model.encoder.layers):
            layer.register_forward_hook(lambda *_, index=index: seen.update({index: torch.is_grad_enabled()}))
        return model.train()

    upper = watch(
        make_model({"name": "st_adapter", "layers": [1], "place": "before_attention"}, LABELS, tune=["adapters"])
    )
    shake(upper.encoder.layers[1].adapters)
    upper(random_frames()).logits.mean().backward()
    assert seen == {0: False, 1: True}
    gradients = [parameter.grad.clone() for parameter in upper.parameters() if parameter.requires_grad]
    upper.zero_grad()
    upper(random_frames().requires_grad_()).logits.mean().backward()  # gradients of frames on request
    assert seen == {0: True, 1: True}
    for actual, whole in zip(gradients, (p.grad for p in upper.parameters() if p.requires_grad), strict=True):
        assert torch.equal(actual, whole)
    watch(make_model(labels=LABELS, head="linear", tune=["head"]))(random_frames()).logits.mean().backward()
    assert seen == {0: False, 1: False}
    watch(make_model(labels=LABELS, tune=["full"]))(random_frames()).logits.mean().backward()
    assert seen == {0: True, 1: True}


@pytest.mark.parametrize("tune", [["adapters", "head"], [LORA], ["layernorm"], ["full"]], ids=str)
def test_frozen_bf16_is_bitwise_equal_under_autocast(make_model, tune):
    results = []
    for lower in (False, True):
        model = move(make_model("st_adapter", LABELS, tune=tune)).train()
        if lower:
            model.encoder.lower_frozen_precision()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(random_frames()).logits
            logits.float().square().mean().backward()
        results.append([logits, *(value.grad for value in model.parameters() if value.requires_grad)])
    halves = sum(value.dtype == torch.bfloat16 for value in model.parameters())
    assert halves == (0 if tune == ["full"] else 2 * 2 * 6 + 1)  # weight and bias of six linears a block, patches
    assert all(value.dtype == torch.float32 for value in model.parameters() if value.requires_grad)
    for plain, lowered in zip(*results, strict=True):
        assert torch.equal(plain, lowered)


# Learning rates


def test_layer_decay_of_pretrained_weights(make_model):
    model = make_model("sifa", LABELS, tune=["adapters", "full", LORA, {"name": "coop"}])
    optimizer = build_optimizer(model, OptimConfig(lr=1.0, layer_decay=0.5))
    names = {id(value): name for name, value in model.named_parameters()}
    actual = {names[id(value)]: group["lr"] for group in optimizer.param_groups for value in group["params"]}
    assert actual.keys() == trained(model)
    for name, lr in actual.items():
        block = re.match(r"encoder\.layers\.(\d)\.block\.", name)
        if block and ".lora_" not in name:
            assert lr == (0.25, 0.5)[int(block[1])], name
        elif name.startswith("encoder.tower."):
            assert lr == (1.0 if any(part in name for part in ("ln_post", "proj")) else 0.125), name
        else:
            assert lr == 1.0, name


def test_text_tower_has_layers_too(make_model):
    model = make_model(labels=LABELS, tune=["text"])
    optimizer = build_optimizer(model, OptimConfig(lr=1.0, layer_decay=0.5))
    actual = {id(value): group["lr"] for group in optimizer.param_groups for value in group["params"]}
    clip = model.text.clip
    assert actual[id(clip.token_embedding.weight)] == actual[id(clip.positional_embedding)] == 0.25
    assert actual[id(clip.transformer.resblocks[0].mlp.c_fc.weight)] == 0.5
    assert actual[id(clip.text_projection)] == actual[id(clip.logit_scale)] == 1.0


def test_table_counts_every_parameter_once(make_model):
    model = make_model("sifa", LABELS, tune=["adapters", LORA, {"name": "partial", "blocks": 1}])
    optimizer = build_optimizer(model, config := OptimConfig(lr=0.01, layer_decay=0.5, weight_decay=0.1))
    build_scheduler(optimizer, config, 10)  # the warm-up starts at lr 0, which is not shown
    header, *lines = [line.split("  ") for line in describe_groups(model, optimizer).splitlines()]
    rows = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert [cell.strip() for cell in header if cell.strip()] == ["module", "parameters", "lr", "weight decay", "share"]
    counts = {row[0]: int(row[1].replace(",", "")) for row in rows[-2:]}
    assert counts["trained"] == sum(value.numel() for value in model.parameters() if value.requires_grad)
    assert counts["frozen"] == sum(value.numel() for value in model.parameters() if not value.requires_grad)
    groups = [(row[0], row[2], row[3]) for row in rows[:-2]]
    assert sum(int(row[1].replace(",", "")) for row in rows[:-2]) == counts["trained"]
    assert ("encoder.layers.0-1.adapters.sifa", "0.01", "0.1") in groups
    assert ("encoder.layers.0-1.block.attn (lora)", "0.01", "0.1") in groups
    assert ("encoder.layers.1.block.mlp", "0.005", "0.1") in groups
    assert ("encoder.layers.1.block.mlp", "0.005", "0") in groups
    assert sum(float(row[-1].rstrip("%")) for row in rows[-2:]) == pytest.approx(100, abs=0.02)
