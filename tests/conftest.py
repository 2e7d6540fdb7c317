"""Small random CLIPs, models around them and shared fixture files. Nothing here uses the network."""

import copy
import functools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import open_clip
import pytest
import torch
from browser_page import open_browser
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clipvid.adapters import ADAPTERS, Adapter, AdapterOutput, BlockInfo
from clipvid.backbone import Backbone, load_backbone, loading
from clipvid.layers.attention import SelfAttention
from clipvid.model.config import ModelConfig
from clipvid.model.factory import assemble_model
from clipvid.model.video_clip import VideoCLIP

torch.set_num_threads(1)  # threads slow down operations on tensors this small

REPOSITORY = Path(__file__).parent.parent
posix_only = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals, pipes or limits")

# Options under which an adapter is quick to run; `steady` ones also make training free of batch statistics.
SMALL: dict[str, dict[str, Any]] = {"ila": {"hidden": 16}}
STEADY: dict[str, dict[str, Any]] = {"ila": {"hidden": 64, "norm": "frozen_batch"}}


def clip_config(vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None, **top: Any) -> dict[str, Any]:
    """Return open_clip's `model_cfg` of a tiny CLIP: grid 4 x 4, width 64, two heads, two blocks, full vocabulary."""
    vision_cfg = {"image_size": 64, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32}
    text_cfg = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 1, "layers": 1}
    return {"embed_dim": 32, "vision_cfg": vision_cfg | (vision or {}), "text_cfg": text_cfg | (text or {})} | top


def write_clip(folder: Path, config: dict[str, Any], seed: int = 0) -> Path:
    """Write a random CLIP of `config` as open_clip's folder, without clipvid. Every tensor is random."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25]}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    torch.manual_seed(seed)
    kinds = {"custom_text": open_clip.CustomTextCLIP, "multimodal_cfg": open_clip.CoCa}
    kind = next((cls for key, cls in reversed(kinds.items()) if key in config), open_clip.CLIP)
    clip = kind(**{key: value for key, value in config.items() if key != "custom_text"})
    for parameter in clip.parameters():  # open_clip leaves some unset
        parameter.data.nan_to_num_(0.0).clamp_(-5, 5)
    shake(clip)
    save_file(clip.state_dict(), folder / "open_clip_model.safetensors")
    return folder


@torch.no_grad()
def shake(module: nn.Module, amount: float = 0.1, seed: int = 1) -> None:
    """Add noise to every parameter and every BatchNorm statistic of `module`."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.add_(amount * torch.randn(parameter.shape, generator=generator).to(parameter))
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.add_(amount * torch.randn(buffer.shape, generator=generator).to(buffer))
        if name.endswith("running_var"):
            buffer.mul_(0.5 + torch.rand(buffer.shape, generator=generator).to(buffer))


def shake_adapters(model: VideoCLIP) -> VideoCLIP:
    """Add noise to the adapters of `model` and return it."""
    for seed, adapter in enumerate(model.encoder.adapters()):
        shake(adapter, 0.05, seed)
    return model


def random_frames(batch: int = 2, num_frames: int = 3, size: int = 64, seed: int = 2) -> Tensor:
    """Return frames [B, T, 3, S, S] within the range of normalized pixels of every CLIP here."""
    frames = torch.randn(batch, num_frames, 3, size, size, generator=torch.Generator().manual_seed(seed))
    return frames.clamp(-1.2, 1.2)


def random_tokens(frames: int = 3, grid: tuple[int, int] = (3, 5), prefix: int = 1, batch: int = 2) -> Tensor:
    """Return tokens [B, T, P+N, 64] of a stream."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(batch, frames, prefix + grid[0] * grid[1], 64, generator=generator)


def make_adapter(name: str, num_frames: int = 3, **options: Any) -> Adapter:
    """Build a registered adapter of its `SMALL` size for width 64 with two heads, with noise added."""
    torch.manual_seed(4)
    block = BlockInfo(64, 2, num_frames, SelfAttention(64, 2), nn.LayerNorm(64))
    adapter = ADAPTERS[name](ADAPTERS[name].Config(**SMALL.get(name, {}) | options), block)
    shake(adapter)
    return adapter


def tokens_of(output: AdapterOutput) -> Tensor:
    """Return the tokens that an adapter gives to its block: its update and its context tokens, [B, T, L, D]."""
    return torch.cat([part for part in (output.update, output.context) if part is not None], dim=2)


def total(output: AdapterOutput) -> Tensor:
    """Return a scalar that depends on all outputs of an adapter."""
    tokens = tokens_of(output)
    weights = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(5)).to(tokens)
    return (tokens * weights).sum() + (0.0 if output.loss is None else output.loss)


@pytest.fixture(scope="module")
def browser():
    """Return a real browser for the tests of a module."""
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="session", autouse=True)
def _cache_folder(tmp_path_factory) -> None:
    """Keep everything that runs store out of the user's cache."""
    os.environ["CLIPVID_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _one_thread():
    """Fail a test that leaves torch with more threads. Those after it would compute other last bits than a process."""
    yield
    left = torch.get_num_threads()
    torch.set_num_threads(1)
    assert left == 1


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> Path:
    """Folder of the tiny random CLIP that `make_model` uses."""
    return write_clip(tmp_path_factory.mktemp("clip") / "tiny", clip_config())


@functools.cache
def _loaded(name: str, image_size: int | None) -> Backbone:
    return load_backbone(name, image_size=image_size)


def fresh_backbone(name: str, image_size: int | None = None) -> Backbone:
    """Return the result of `load_backbone`, from a copy in memory."""
    loaded = _loaded(name, image_size)
    tokenizer = loaded.text.tokenizer
    return copy.deepcopy(loaded, {id(tokenizer): tokenizer})


@pytest.fixture
def tiny_folder(clip_folder, tmp_path, monkeypatch) -> Path:
    """Replace the packaged `tiny` by a random CLIP, so that its name alone loads it, and return the folder."""
    folder = shutil.copytree(clip_folder, tmp_path / "packaged")
    monkeypatch.setattr(loading, "_TINY_FOLDER", folder)
    return folder


@pytest.fixture(scope="session")
def make_model(clip_folder) -> Callable[..., VideoCLIP]:
    """Return a function that builds a model around the CLIP in `folder`, with fields of `ModelConfig`.

    Adapters given by name get `SMALL` options. `is_public` uses `tiny` instead, which the fixture `tiny_folder` must
    have replaced.
    """

    def build(
        adapter: Any = "none",
        labels: list[str] | None = None,
        is_public: bool = False,
        folder: Path = clip_folder,
        **fields: Any,
    ) -> VideoCLIP:
        names = adapter if isinstance(adapter, list) else [adapter]
        chosen = [{"name": name, **SMALL.get(name, {})} if isinstance(name, str) else name for name in names]
        name = "tiny" if is_public else f"local-dir:{folder}"
        load = load_backbone if is_public else fresh_backbone
        backbone = load(name, image_size=fields.get("image_size"))
        torch.manual_seed(6)
        fields = {"num_frames": 3} | fields
        model = assemble_model(backbone, ModelConfig(backbone=name, adapter=chosen, **fields), labels and len(labels))
        if labels:
            model.set_labels(labels)
        return model.eval()

    return build


@pytest.fixture(scope="session")
def shared_fixture() -> Callable[[str], dict[str, Tensor]]:
    """Return a function that loads a shared fixture file by name. It skips the test if the folder is missing."""
    folder = Path(os.environ.get("CLIPVID_SHARED_FIXTURES", REPOSITORY.parent / "shared" / "fixtures"))

    def read(name: str) -> dict[str, Tensor]:
        path = folder / f"{name}.safetensors"
        if not path.is_file():
            pytest.skip(f"no shared fixture {path}; CLIPVID_SHARED_FIXTURES names their folder")
        return load_file(path)

    return read
