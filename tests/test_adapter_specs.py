"""Choice and place of adapters: names, options, layers, stacks."""

import pytest
import torch
from conftest import SMALL, random_frames, random_tokens, shake_adapters
from torch import nn
from torch.nn import functional as F

from clipvid.adapters import ADAPTERS, Adapter, AdapterOutput, resolve_adapters, select_layers
from clipvid.hub.loading import from_pretrained
from clipvid.model.encoder import VideoBlock
from clipvid.model.factory import create_model

NAMES = [name for name in ADAPTERS if name != "none"]
LABELS = ["walking", "running", "jumping"]

every_adapter = pytest.mark.parametrize("name", NAMES)


# Which blocks


@pytest.mark.parametrize(
    ("spec", "depth", "expected"),
    [
        ("all", 3, (0, 1, 2)),
        ("upper", 4, (2, 3)),
        ("upper", 5, (2, 3, 4)),
        ("even", 5, (0, 2, 4)),
        ("odd", 5, (1, 3)),
        ("even", 1, (0,)),
        ("every_1", 3, (0, 1, 2)),
        ("every_2", 4, (1, 3)),
        ("every_3", 12, (2, 5, 8, 11)),
        ("every_5", 12, (1, 6, 11)),
        ("every_9", 4, (3,)),
        ([2, 0], 3, (0, 2)),
        ((1, -1, 2), 3, (1, 2)),
        ([-3], 3, (0,)),
    ],
)
def test_layers_are_selected(spec, depth, expected):
    assert select_layers(spec, depth) == expected


@pytest.mark.parametrize("spec", ["lower", "every_0", "every_x", "every_", "every_-1", "", "every_²"])
def test_unknown_word_for_layers_is_refused(spec):
    with pytest.raises(ValueError, match=r"expected all, upper, even, odd, every_<k> or a list of block indices"):
        select_layers(spec, 4)


@pytest.mark.parametrize("spec", [2, None, 1.5])
def test_layers_of_another_type_are_refused(spec):
    with pytest.raises((TypeError, ValueError), match=r"layers=.*expected all, upper"):
        select_layers(spec, 4)


def test_word_that_selects_no_block_is_refused():
    with pytest.raises(ValueError, match="layers='odd' selects no block of a tower of 1; choose all"):
        select_layers("odd", 1)


@pytest.mark.parametrize("spec", [[4], [0, -5]])
def test_layer_outside_of_the_tower_is_refused(spec):
    with pytest.raises(ValueError, match=r"is out of range for a tower of 4 blocks \(0\.\.3\)"):
        select_layers(spec, 4)


@every_adapter
def test_adapter_is_in_chosen_blocks_only(make_model, name):
    model = make_model({"name": name, "layers": [-1], **SMALL.get(name, {})}, LABELS)
    assert [list(layer.adapters) for layer in model.encoder.layers] == [[], [name]]
    output = model.train()(random_frames(), trace=True)
    assert set(output.losses) | set(output.traces) <= {f"{name}.1"}


# Choosing


@every_adapter
def test_same_adapter_twice_is_refused(name):
    with pytest.raises(ValueError, match=r"each name may be listed once, got \['" + name):
        resolve_adapters([name, {"name": name, "layers": "upper"}])


def test_none_adds_nothing():
    assert resolve_adapters("none") == {}
    assert list(resolve_adapters(["none", "ila"])) == ["ila"]


@every_adapter
def test_unknown_option_suggests_the_nearest(name):
    with pytest.raises(ValueError, match=r"has no option 'layerz' \(did you mean 'layers'\?\)"):
        resolve_adapters({"name": name, "layerz": "all"})


@every_adapter
def test_unknown_option_of_create_model_is_refused(name):
    """The check precedes the search for a backbone."""
    with pytest.raises(ValueError, match=r"unknown option 'layerz' \(did you mean 'layers'\?\)"):
        create_model("no such tower", adapter=name, layerz="all")


def test_options_next_to_adapter_list_are_refused():
    with pytest.raises(ValueError, match=r"unknown option 'layerz'"):
        create_model("no such tower", adapter=["ila"], layerz="all")


def test_unknown_adapter_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"unknown adapter 'ilaa' \(did you mean 'ila'\?\); known: none"):
        resolve_adapters("ilaa")


@pytest.mark.parametrize("spec", [{"layers": "all"}, 3, None, ["ila", None], {"name": 3}])
def test_adapter_without_a_name_is_refused(spec):
    with pytest.raises(ValueError, match="adapter: expected a name or a mapping with `name`"):
        resolve_adapters(spec)


# Places


class Probe(Adapter):
    """Adapter that adds a constant and stores its input."""

    def __init__(self, place):
        nn.Module.__init__(self)
        self.place = place

    def forward(self, tokens, grid, trace=False):
        self.seen = tokens
        return AdapterOutput(torch.full_like(tokens, 0.5))


@torch.no_grad()
def test_adapters_update_at_their_place(make_model):
    block = make_model().encoder.layers[0].block
    before, after = Probe("before_attention"), Probe("after_attention")
    tokens = random_tokens(grid=(4, 4))
    output, losses, traces = VideoBlock(block, {"after": after, "before": before})(tokens, (4, 4))
    assert torch.equal(before.seen, tokens)
    stream = (tokens + 0.5).flatten(0, 1)
    stream = stream + block.attention(stream)
    torch.testing.assert_close(after.seen.flatten(0, 1), stream)
    stream = stream + 0.5
    stream = stream + block.feed_forward(stream)
    torch.testing.assert_close(output.flatten(0, 1), stream)
    assert (losses, traces) == ({}, {})


ILA_ABOVE = {"name": "ila", "layers": "upper", "hidden": 64, "norm": "frozen_batch"}


@pytest.mark.parametrize(
    ("stack", "places"),
    [
        (["ata", "gta"], [["ata", "gta"], ["ata", "gta"]]),
        ([ILA_ABOVE, "sifa"], [["sifa"], ["ila", "sifa"]]),
        (["sifa", {"name": "none"}, ILA_ABOVE], [["sifa"], ["sifa", "ila"]]),
    ],
    ids=str,
)
def test_adapter_stack_round_trip_is_bitwise(make_model, tmp_path, stack, places):
    """Blocks and order follow the config.

    The head also reads the patches of the last block, where SIFA ignores the class token.
    """
    model = shake_adapters(make_model(stack, LABELS, head={"name": "text", "prompt_layers": 1})).train()
    assert [list(layer.adapters) for layer in model.encoder.layers] == places
    trained = {key: value for key, value in model.named_parameters() if value.requires_grad}
    assert {tuple(key.split(".")[2:5:2]) for key in trained if key.startswith("encoder.")} == {
        (str(layer), name) for layer, names in enumerate(places) for name in names
    }
    before = {key: value.detach().clone() for key, value in trained.items()}
    output = model(random_frames())
    (F.cross_entropy(output.logits, torch.tensor([0, 1])) + sum(output.losses.values())).backward()
    torch.optim.SGD(trained.values(), lr=1.0).step()
    still = [key for key, value in trained.items() if torch.equal(value, before[key])]
    assert all(key.endswith(".k.bias") for key in still), still
    model.eval().save_pretrained(tmp_path)
    loaded = from_pretrained(tmp_path)
    assert [list(layer.adapters) for layer in loaded.encoder.layers] == places
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in model.state_dict().items())
    assert torch.equal(loaded(random_frames()).logits, model(random_frames()).logits)
