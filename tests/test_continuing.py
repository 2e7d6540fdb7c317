"""Training from a saved model of any kind, texts that are cut, and towers without a tokenizer."""

import sys
import warnings

import pytest
import torch
from conftest import clip_config, random_frames, shake_adapters, write_clip
from processes import Worker, all_end_well
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

import clipvid
from clipvid.backbone import load_backbone
from clipvid.hub import from_pretrained, start_from

LABELS = ["walking", "running", "jumping"]
LORA = {"name": "lora", "rank": 2}
PAIRS = {
    "full to full": ({"tune": ["full", "adapters"]}, {"tune": ["full", "adapters"]}),
    "full to adapters": ({"tune": ["full", "text"]}, {"tune": ["adapters"]}),
    "LoRA to LoRA": ({"tune": [LORA, "adapters"]}, {"tune": ["adapters", LORA]}),
    "LoRA to adapters": ({"tune": [LORA, "adapters"]}, {"tune": ["adapters"]}),
    "LoRA in both towers to full": (
        {"tune": [{**LORA, "towers": ["image", "text"]}, "adapters"]}, {"tune": ["full"]},
    ),
    "layernorm to LoRA": ({"tune": ["layernorm"]}, {"tune": [LORA]}),
    "CoOp": ({"tune": ["coop"]}, {"tune": ["coop"]}),
    "prompts": ({"head": {"name": "text", "prompt_layers": 1}}, {"head": {"name": "text", "prompt_layers": 1}}),
    "linear": ({"head": "linear"}, {"head": "linear"}),
    "mit": ({"pooling": "mit"}, {"pooling": "mit"}),
}  # fmt: skip


def trained(make_model, adapter="ila", is_public=True, **spec):
    """Build a model with noise added to its trained weights."""
    model = shake_adapters(make_model(adapter, LABELS, is_public=is_public, **spec))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9)))
    model.set_labels(LABELS)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("is_public", [True, False], ids=["named", "embedded"])
def test_any_model_can_be_continued(make_model, tiny_folder, tmp_path, pair, is_public):
    first, second = PAIRS[pair]
    start = trained(make_model, is_public=is_public, **first)
    start.save_pretrained(tmp_path / "start")
    model = make_model("ila", LABELS, is_public=is_public, **second).eval()
    base = model.base_fingerprint()
    started = start_from(model, tmp_path / "start")
    assert started.new == (["LoRA"] if pair == "layernorm to LoRA" else [])
    frames = random_frames()
    torch.testing.assert_close(model(frames).logits, start(frames).logits, rtol=1e-4, atol=1e-4)
    assert model.base_fingerprint() == base
    model.save_pretrained(tmp_path / "again")
    again = from_pretrained(tmp_path / "again")
    assert torch.equal(again(frames).logits, model(frames).logits)
    assert again.base_fingerprint() == base


@torch.no_grad()
def test_linear_head_rows_follow_their_class(make_model, tmp_path):
    start = trained(make_model, "none", is_public=False, head="linear")
    start.save_pretrained(tmp_path)
    names = ["jumping", "swimming", "walking"]
    model = make_model("none", names, head="linear").eval()
    before = model.head.linear.weight[1].clone()
    started = start_from(model, tmp_path)
    assert (started.loaded, started.new) == (["head rows of 2 classes"], ["head rows of 1 classes (swimming)"])
    own, inputs = model(random_frames()).logits, start(random_frames()).logits
    torch.testing.assert_close(own[:, [0, 2]], inputs[:, [2, 0]])
    assert torch.equal(model.head.linear.weight[1], before)


def test_adapters_are_new_if_start_has_none(make_model, tmp_path):
    trained(make_model, "none", is_public=False, tune=["full"]).save_pretrained(tmp_path)
    started = start_from(make_model("ila", LABELS, pooling="mit"), tmp_path)
    assert str(started) == "loaded trained towers; new: adapters, pooling"


def test_start_of_another_clip_is_refused(make_model, tiny_folder, tmp_path):
    trained(make_model, is_public=False, tune=["full"]).save_pretrained(tmp_path / "start")
    other = write_clip(tmp_path / "other", clip_config(), seed=4)
    with pytest.raises(clipvid.InputError, match="is made from another backbone"):
        start_from(make_model("ila", LABELS, folder=other), tmp_path / "start")


# Text


@pytest.fixture
def words_folder(tmp_path):
    """Write a CLIP with a tokenizer of transformers next to its weights."""
    names = {name: index for index, name in enumerate(["[UNK]", "[PAD]", *(f"w{i}" for i in range(40))])}
    words = Tokenizer(WordLevel(names, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    folder = write_clip(tmp_path / "clip", clip_config(text={"hf_tokenizer_name": "somebody/words"}))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    return folder


def test_tower_without_tokenizer_works_without_text(words_folder, make_model, tmp_path):
    for path in words_folder.glob("*token*"):
        path.unlink()
    model = make_model("none", LABELS, folder=words_folder, head="linear")
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(from_pretrained(tmp_path / "saved")(random_frames()).logits, model(random_frames()).logits)
    with pytest.raises(clipvid.RunError, match=r"its tokenizer could not be loaded .* need it"):
        make_model("none", LABELS, folder=words_folder)


@pytest.mark.parametrize("tokenizer", ["CLIP's", "transformers'"])
def test_long_texts_warn_with_cut_words(make_model, words_folder, tokenizer):
    model = make_model("none", **({} if tokenizer == "CLIP's" else {"folder": words_folder}))
    room = 14 if tokenizer == "CLIP's" else 16
    words = [f"w{i}" if tokenizer != "CLIP's" else "dog" for i in range(room)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode_text([" ".join(words), "short"])
    last = ["then", "jumps"] if tokenizer == "CLIP's" else ["w30", "w31"]
    with pytest.warns(UserWarning, match=f"1 of 2 texts are longer .* loses '{' '.join(last)}'"):
        model.encode_text(["short", " ".join([*words, *last])])
    with pytest.warns(UserWarning, match="2 of 2 texts"):
        model.set_labels([" ".join([*words, *last]), " ".join([*words, *last[::-1]])])


def test_partly_cut_word_is_shown_whole(make_model):
    with pytest.warns(UserWarning, match="loses 'quixotically dog'"):
        make_model("none").encode_text(["dog " * 13 + "quixotically dog"])


@pytest.mark.parametrize(
    ("name", "tag", "near"),
    [("vit-b-16", None, "ViT-B-16"), ("ViT-B16", None, "ViT-B-16"), ("tny", None, "tiny"),
     ("ViT-B-32", "laion2b_s34b_b97k", "laion2b_s34b_b79k"), ("ViT-B-16", "opnai", "openai")],
)  # fmt: skip
def test_unknown_names_suggest_the_nearest(name, tag, near):
    with pytest.raises(clipvid.InputError, match=f"did you mean '{near}'"):
        load_backbone(name, tag)


def print_memory_of_labels() -> None:
    """Print the growth of the peak memory in KiB from 300 labels to 8000."""
    import resource

    model = clipvid.create_model("tiny", adapter="none", num_frames=2).eval()
    model.set_labels([f"class number {index}" for index in range(300)])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model.set_labels([f"class number {index}" for index in range(8000)])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux alone")
def test_memory_is_independent_of_number_of_labels(tmp_path):
    """Without splitting, the MLP of one layer alone would need 8000 x 32 x 256 floats, 250 MiB."""
    worker = Worker(tmp_path / "log", {}, print_memory_of_labels)
    all_end_well([worker])
    assert int(worker.said.splitlines()[-1]) / 1024 < 60


@torch.no_grad()
def test_long_lists_give_equal_text_features(make_model):
    model = make_model("none")
    texts = [f"class number {index}" for index in range(300)]
    expected = torch.cat([model.encode_text([text]) for text in texts])
    torch.testing.assert_close(model.encode_text(texts), expected, rtol=1e-4, atol=1e-5)
