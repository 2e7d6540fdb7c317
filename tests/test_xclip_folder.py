"""Folders of transformers' `XCLIPModel`: equal to transformers, saved again, continued, and refused where damaged."""

import json
import random
import shutil
from pathlib import Path

import av
import numpy as np
import open_clip
import pytest
import torch
from mutations import mutate_bytes
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer, VideoMAEImageProcessor, XCLIPConfig, XCLIPModel, XCLIPProcessor

import clipvid
from clipvid import commands
from clipvid.data.reader import open_video
from clipvid.hub.continuing import start_from
from clipvid.hub.folder import weights_hash
from clipvid.hub.loading import from_pretrained
from clipvid.inference.predictor import Predictor
from clipvid.model.video_clip import VideoCLIP

LABELS = ["playing guitar", "riding a bike", "jumping into a pool"]
# Sizes: width and layers of the tower, its heads, image and patch size, frames, embedding, layers of MIT and prompts.
SHAPES = {
    "small": (64, 1, 1, 32, 16, 3, 64, 1, 2),
    "deep": (128, 3, 2, 32, 8, 4, 64, 2, 1),
    "wide": (128, 2, 4, 48, 16, 2, 128, 1, 3),
}


def config_of(shape: str) -> XCLIPConfig:
    width, layers, heads, image, patch, frames, embed, mit_layers, prompts = SHAPES[shape]
    text = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "mit_hidden_size": embed,
        "mit_intermediate_size": 4 * embed,
        "mit_num_hidden_layers": mit_layers,
        "mit_num_attention_heads": embed // 64,
        "image_size": image,
        "patch_size": patch,
        "num_frames": frames,
    }
    return XCLIPConfig(
        text_config=text,
        vision_config=vision,
        projection_dim=embed,
        prompt_num_attention_heads=embed // 64,
        prompt_layers=prompts,
    )


def write_published_processor(folder: Path, size: int) -> None:
    """Write the processor's files under the names and fields of the published repositories."""
    tokenizer = open_clip.SimpleTokenizer()
    merges = [" ".join(pair) for pair, _ in sorted(tokenizer.bpe_ranks.items(), key=lambda item: item[1])]
    special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {special.get(token, token): number for token, number in tokenizer.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    options = {
        "crop_size": {"height": size, "width": size},
        "do_center_crop": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "feature_extractor_type": "VideoMAEFeatureExtractor",
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": size},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(options))


def write_model(folder: Path, shape: str, **options) -> Path:
    torch.manual_seed(0)
    model = XCLIPModel(config_of(shape)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder, **options)
    write_published_processor(folder, SHAPES[shape][3])
    return folder


@pytest.fixture(scope="module", params=SHAPES)
def published(request, tmp_path_factory) -> Path:
    """Folder of a random model of every shape."""
    return write_model(tmp_path_factory.mktemp("published") / request.param, request.param)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("small") / "model", "small")


@pytest.fixture
def folder(small, tmp_path) -> Path:
    """Copy of the small model, to be changed."""
    return shutil.copytree(small, tmp_path / "copy")


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """Video whose crop has an odd remainder, at every size here."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    pictures = np.random.default_rng(0).integers(0, 256, (12, 8, 11, 3), np.uint8)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 94, 64, "yuv420p"
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(94, 64, interpolation="BICUBIC")
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def processor_of(folder: Path) -> XCLIPProcessor:
    return XCLIPProcessor(VideoMAEImageProcessor.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder))


def transformers_scores(processor: XCLIPProcessor, folder: Path, video: Path) -> torch.Tensor:
    """Return the probabilities of transformers' model and processor, for the frames that clipvid samples."""
    reader = Predictor(named(folder)).reader
    with open_video(video) as opened:
        frames = opened.read(reader.sampling.indices(len(opened), None, clip=0, num_clips=1))
    inputs = processor(text=LABELS, videos=[*frames.numpy()], return_tensors="pt", padding=True)
    with torch.no_grad():
        return XCLIPModel.from_pretrained(folder).eval()(**inputs).logits_per_video.softmax(dim=1)[0]


def named(folder: Path) -> VideoCLIP:
    model = from_pretrained(folder)
    model.set_labels(LABELS)
    return model


# Equal to transformers


def outputs_of(theirs, ours, clips):
    """Return the outputs of transformers and of clipvid for a copy of the same clip each."""
    ids = ours.text.tokenize(LABELS)
    return theirs(input_ids=ids, pixel_values=clips[0]), ours(clips[1], text=ids, normalized=True)


def test_logits_and_video_features_equal_transformers(published):
    theirs, ours = XCLIPModel.from_pretrained(published).eval(), from_pretrained(published)
    assert not ours.training
    clip = torch.randn(2, ours.num_frames, 3, ours.image_size, ours.image_size)
    with torch.no_grad():
        expected, actual = outputs_of(theirs, ours, (clip, clip))
    torch.testing.assert_close(actual.logits, expected.logits_per_video, rtol=1e-5, atol=1e-5)
    video = torch.nn.functional.normalize(actual.video_features, dim=-1)
    torch.testing.assert_close(video, expected.video_embeds, rtol=1e-5, atol=1e-5)


def test_gradients_equal_transformers_in_float64(published):
    theirs, ours = XCLIPModel.from_pretrained(published).double().eval(), from_pretrained(published).double()
    ours.requires_grad_(True)
    size = ours.image_size
    clips = [torch.randn(2, ours.num_frames, 3, size, size, dtype=torch.float64).requires_grad_()]
    clips.append(clips[0].detach().clone().requires_grad_())
    expected, actual = outputs_of(theirs, ours, clips)
    probe = torch.randn(actual.logits.shape, dtype=torch.float64)
    for logits in (expected.logits_per_video, actual.logits):
        (logits * probe).sum().backward()
    layer, block = theirs.vision_model.encoder.layers[0], ours.encoder.layers[0]
    message, prompts = block.adapters["xclip"], ours.head.video_prompts
    gradients = {
        "pixels": (clips[0].grad, clips[1]),
        "message": (layer.message_fc.weight.grad, message.message_fc.weight),
        "message attention": (layer.message_attn.q_proj.weight.grad, message.message_attn.q.weight),
        "attention": (layer.self_attn.v_proj.bias.grad, block.block.attn.v.bias),
        "positions": (theirs.mit.position_embedding.grad[0], ours.pooling.position),
        "prompts": (theirs.prompts_visual_projection.grad.T, prompts.visual_proj.weight),
        "decoder": (theirs.prompts_generator.decoder[0].mlp[3].weight.grad, prompts.layers[0].mlp[2].weight),
        "text": (theirs.text_projection.weight.grad.T, ours.text.clip.text_projection),
        "scale": (theirs.logit_scale.grad, ours.text.clip.logit_scale),
    }
    for name, (gradient, parameter) in gradients.items():
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-7, atol=1e-9, msg=name)


def test_predict_gives_the_scores_of_transformers(published, video, capsys):
    commands.run("predict", ["--model", str(published), "--labels", *LABELS, "--top_k", "3", "--", str(video)])
    rows = json.loads(capsys.readouterr().out)["predictions"]
    scores = {row["label"]: row["score"] for row in rows}
    expected = transformers_scores(processor_of(published), published, video)
    torch.testing.assert_close(torch.tensor([scores[label] for label in LABELS]), expected, rtol=1e-4, atol=1e-5)


def test_files_of_transformers_five_are_read(folder, video):
    processor = processor_of(folder)
    for name in ("preprocessor_config.json", "vocab.json", "merges.txt"):
        (folder / name).unlink()
    processor.save_pretrained(folder)
    assert (folder / "processor_config.json").exists()
    actual = Predictor(named(folder)).scores(video)
    torch.testing.assert_close(actual, transformers_scores(processor, folder, video), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_shards_are_read(folder):
    expected = named(folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = {"model-00001-of-00002.safetensors": {}, "model-00002-of-00002.safetensors": {}}
    for number, (name, value) in enumerate(state.items()):
        parts[list(parts)[number % 2]][name] = value
    for name, part in parts.items():
        save_file(part, folder / name)
    places = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    clip = torch.randint(256, (1, 3, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(named(folder)(clip).logits, expected(clip).logits)
    assert weights_hash(folder) == weights_hash(folder)


# Saved and continued


@torch.no_grad()
def test_saved_folder_is_one_of_clipvid_and_round_trips(published, tmp_path, video):
    model = named(published)
    model.save_pretrained(tmp_path / "saved")
    loaded = from_pretrained(tmp_path / "saved")
    assert torch.equal(Predictor(loaded).scores(video), Predictor(model).scores(video))
    assert loaded.labels == LABELS
    assert loaded.preprocessing == model.preprocessing
    assert loaded.origin == model.origin
    loaded.save_pretrained(tmp_path / "again")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("saved", "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@torch.no_grad()
def test_command_converts_the_folder(small, tmp_path, capsys):
    commands.run("convert", ["auto", "--checkpoint", str(small), "--output_dir", str(tmp_path / "out")])
    assert "X-CLIP (model) (license unknown: ask its authors), 3 frames of 32 px" in capsys.readouterr().out
    clip = torch.randint(256, (1, 3, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(named(tmp_path / "out")(clip).logits, named(small)(clip).logits)
    with pytest.raises(SystemExit):
        commands.run("convert", ["mote", "--checkpoint", str(small), "--output_dir", str(tmp_path / "other")])
    assert "expected a file, or for xclip a folder" in capsys.readouterr().err


def parts_of(saved: Path) -> dict:
    pixels = {"pixel_mean": (0.485, 0.456, 0.406), "pixel_std": (0.229, 0.224, 0.225)}
    parts = {"pooling": "mit", "head": {"name": "text", "prompt_layers": 2}, "num_frames": 3}
    return {"backbone": f"local-dir:{saved / 'backbone'}", "adapter": "xclip", **parts, **pixels}


def test_training_continues_from_the_model(small, tmp_path):
    saved = tmp_path / "saved"
    from_pretrained(small).save_pretrained(saved)
    model = clipvid.create_model(**parts_of(saved), tune=["adapters", "head", "full"])
    for source in (small, saved):
        started = start_from(model, source)
        assert started.new == []
        assert {"adapters", "pooling", "head"} <= set(started.loaded)
    model.set_labels(LABELS)
    clip = torch.randint(256, (1, 3, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(model.eval()(clip).logits, named(small)(clip).logits)
    assert model.origin is not None
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=1e-3)
    losses = []
    for _ in range(4):
        loss = torch.nn.functional.cross_entropy(model.train()(clip).logits, torch.tensor([2]))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]


def test_other_pixel_statistics_are_warned_about(small, tmp_path):
    from_pretrained(small).save_pretrained(tmp_path)
    model = clipvid.create_model(**parts_of(tmp_path) | {"pixel_mean": None, "pixel_std": None})
    with pytest.warns(UserWarning, match=r"Set model\.pixel_mean and model\.pixel_std"):
        start_from(model, small)


# Refused


def change(path: Path, **values) -> None:
    record = json.loads(path.read_text())
    for key, value in values.items():
        *owners, name = key.split("__")
        part = record
        for owner in owners:
            part = part[owner]
        part[name] = value
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vision_config__hidden_act": "gelu"}, r"vision_config\.hidden_act is gelu"),
        ({"vision_config__layer_norm_eps": 1e-6}, r"vision_config\.layer_norm_eps is 1e-06"),
        ({"vision_config__mit_num_attention_heads": 4}, r"mit_num_attention_heads is 4, .*expected 1"),
        ({"text_config__intermediate_size": 300}, r"text_config\.intermediate_size is 300"),
        ({"vision_config__num_attention_heads": 7}, r"not a multiple of the number of heads"),
        ({"vision_config__num_attention_heads": 0}, r"not the config of an XCLIPModel"),
        ({"vision_config__num_hidden_layers": 2}, r"num_hidden_layers=2 does not fit the weights, which have 1"),
        ({"vision_config__num_frames": 8}, r"num_frames=8 does not fit the weights, which have 3"),
        ({"prompt_layers": 3}, r"prompt_layers=3 does not fit"),
        ({"vision_config__hidden_size": 10**9}, r"hidden_size=1000000000 does not fit"),
        ({"vision_config__num_hidden_layers": "many"}, r"not the config of an XCLIPModel"),
        ({"vision_config": 3}, r"not the config of an XCLIPModel|is damaged"),
        ({"vision_config__image_size": [32, 32]}, r"image_size is list, .*expected int"),
        ({"vision_config__image_size": 48}, r"image_size=48 does not fit the weights, which have 32"),
    ],
    ids=str,
)
def test_config_that_does_not_fit_is_refused(folder, values, message):
    change(folder / "config.json", **values)
    with pytest.raises(ValueError, match=message):
        from_pretrained(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"do_normalize": False}, "do_normalize=False is not supported"),
        ({"resample": 1}, "resample=1 is not supported"),
        ({"rescale_factor": 1.0}, r"rescale_factor=1.0 is not supported"),
        ({"image_mean": [0.5, 0.5]}, "image_mean"),
        ({"image_std": [0.0, 1.0, 1.0]}, "pixel_std"),
    ],
    ids=str,
)
def test_processor_with_other_options_is_refused(folder, values, message):
    change(folder / "preprocessor_config.json", **values)
    with pytest.raises(ValueError, match=message):
        from_pretrained(folder)


@pytest.mark.parametrize("values", [{"size": {"shortest_edge": 48}}, {"crop_size": 24}], ids=str)
def test_other_sizes_of_the_processor_are_warned_about(folder, values):
    change(folder / "preprocessor_config.json", **values)
    with pytest.warns(UserWarning, match=r"is not followed: .* 32 pixels"):
        from_pretrained(folder)


def test_pixel_statistics_of_the_processor_are_followed(folder):
    change(folder / "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5], resample=3)
    model = from_pretrained(folder)
    assert model.pixel_mean.flatten().tolist() == [0.5] * 3
    assert model.preprocessing.resize == "shortest_center"


@pytest.mark.parametrize("name", ["vocab.json", "tokenizer.json"])
def test_another_vocabulary_is_refused(folder, name):
    words = {"a": 0, "b": 1}
    (folder / name).write_text(json.dumps(words if name == "vocab.json" else {"model": {"vocab": words}}))
    with pytest.raises(ValueError, match="not the vocabulary of CLIP's tokenizer"):
        from_pretrained(folder)


def test_pickled_weights_are_not_read(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"pickled weights are not read\. Convert them with transformers"):
        from_pretrained(folder)


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "pytorch_model.bin"])
def test_index_names_files_of_the_folder_only(folder, name):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"logit_scale": name}}))
    with pytest.raises(ValueError, match="expected safetensors files of the folder"):
        from_pretrained(folder)


def test_link_out_of_the_folder_is_refused(folder, tmp_path):
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(ValueError, match="link out of the model folder"):
        from_pretrained(folder)


@pytest.mark.parametrize("name", ["mit.position_embedding", "text_projection.weight", "prompts_generator.alpha"])
def test_missing_or_unexpected_tensor_is_refused(folder, name):
    state = load_file(folder / "model.safetensors")
    save_file({key: value for key, value in state.items() if key != name}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"mit\.positional_embedding|text_projection|alpha"):
        from_pretrained(folder)
    save_file(state | {"vision_model.extra": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"vision_model\.extra"):
        from_pretrained(folder)


def test_other_backbone_is_refused(small):
    with pytest.raises(ValueError, match="cannot share that of another model"):
        from_pretrained(small, backbone=from_pretrained(small).backbone)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("count", [20, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_mutated_folder_is_loaded_or_refused(folder, count):
    chance = random.Random(0)
    names = ["config.json", "preprocessor_config.json", "model.safetensors"]
    for _ in range(count):
        path = folder / chance.choice(names)
        whole = path.read_bytes()
        path.write_bytes(mutate_bytes(whole[:4096], chance) + whole[4096:])
        try:
            from_pretrained(folder)
        except (ValueError, OSError, RuntimeError) as error:
            assert str(error)  # noqa: PT017
        path.write_bytes(whole)
    from_pretrained(folder)
