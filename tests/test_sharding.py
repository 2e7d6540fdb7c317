"""Every adapter under `fully_shard`: two processes (gloo, CPU) compute the result of one on the whole batch."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from conftest import STEADY, fresh_backbone, random_frames, shake
from processes import all_end_well, together
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from clipvid.adapters import ADAPTERS
from clipvid.model.config import ModelConfig
from clipvid.model.factory import assemble_model
from clipvid.model.video_clip import VideoCLIP

NAMES = [name for name in ADAPTERS if name != "none"]
UNITS = ("blocks", "linears")
PROCESSES = 2
CLIPS = 4
Outputs = dict[str, Any]
Ranks = list[dict[tuple[str, str], Outputs]]

every_adapter = pytest.mark.parametrize("name", NAMES)
every_unit = pytest.mark.parametrize("units", UNITS)


def build(name: str, folder: Path) -> VideoCLIP:
    """Build a model in float64 with noise added to its adapters, independent of the batch."""
    source = f"local-dir:{folder}"
    adapter = {"name": name, **STEADY.get(name, {})}
    backbone = fresh_backbone(source)
    torch.manual_seed(6)  # after loading, which draws numbers when it is the first in a process
    model = assemble_model(backbone, ModelConfig(source, adapter=adapter, num_frames=3, pooling="mit"))
    model.set_labels(["walking", "running", "jumping"])
    for seed, module in enumerate(model.encoder.adapters()):
        shake(module, 0.05, seed)
    return model.double()


def shard(model: VideoCLIP, units: str) -> VideoCLIP:
    """Shard the blocks of `model` and the rest over all processes, except scalars, which cannot be sharded.

    With `linears`, every linear of an adapter is sharded first.
    """
    mesh = init_device_mesh("cpu", (PROCESSES,))
    parts = [part for adapter in model.encoder.adapters() for part in adapter.modules() if isinstance(part, nn.Linear)]
    for part in [*(parts if units == "linears" else []), *model.encoder.layers]:
        fully_shard(part, mesh=mesh)
    scalars = {parameter for parameter in model.parameters() if parameter.ndim == 0}
    fully_shard(model, mesh=mesh, ignored_params=scalars)
    return model


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def run(model: VideoCLIP, clips: slice) -> Outputs:
    """Run an evaluation without gradient, then a step's forward and backward pass on `clips` of the batch."""
    frames = random_frames(CLIPS).double()[clips]
    targets = torch.tensor([0, 1, 2, 1])[clips]
    with torch.no_grad():
        evaluated = model.eval()(frames).logits
    output = model.train()(frames)
    (F.cross_entropy(output.logits, targets) + sum(output.losses.values())).backward()
    gradients = {key: whole(value.grad) for key, value in model.named_parameters() if value.grad is not None}
    losses = {key: loss.detach() for key, loss in output.losses.items()}
    return {"evaluated": evaluated, "logits": output.logits.detach(), "losses": losses, "gradients": gradients}


def work(folder: Path, output: Path) -> None:
    """Run every adapter on this rank's clips in one of the processes, and write the results to `output`."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    share = CLIPS // PROCESSES
    results = {}
    for name, units in itertools.product(NAMES, UNITS):
        model = shard(build(name, folder), units)
        local = {key: value.to_local().numel() for key, value in model.named_parameters() if isinstance(value, DTensor)}
        outputs = run(model, slice(rank * share, (rank + 1) * share))
        results[name, units] = outputs | {"local": local, "world_size": dist.get_world_size()}
    torch.save(results, output / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """Return the results of each process, by adapter and sharded units."""
    output = tmp_path_factory.mktemp("sharded")
    all_end_well(together(PROCESSES, output, work, clip_folder, output))
    return [torch.load(output / f"{rank}.pt") for rank in range(PROCESSES)]


def close(actual: Tensor, expected: Tensor, what: str) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-9, msg=lambda text: f"{what}: {text}")


@every_adapter
@every_unit
def test_every_parameter_is_spread_over_both_processes(ranks: Ranks, clip_folder: Path, name: str, units: str):
    sizes = {key: value.numel() for key, value in build(name, clip_folder).named_parameters() if value.ndim}
    outputs = [rank[name, units] for rank in ranks]
    assert [part["world_size"] for part in outputs] == [PROCESSES] * PROCESSES
    assert all(part["local"].keys() == sizes.keys() for part in outputs)
    assert {key: sum(part["local"][key] for part in outputs) for key in sizes} == sizes


@every_adapter
@every_unit
def test_sharded_processes_equal_one(ranks: Ranks, clip_folder: Path, name: str, units: str):
    expected = run(build(name, clip_folder), slice(None))
    outputs = [rank[name, units] for rank in ranks]
    for key in ("evaluated", "logits"):
        close(torch.cat([part[key] for part in outputs]), expected[key], key)
    assert all(part["losses"].keys() == expected["losses"].keys() for part in outputs)
    for key, loss in expected["losses"].items():
        close(torch.stack([part["losses"][key] for part in outputs]).mean(), loss, key)
    assert expected["gradients"]
    for part in outputs:
        assert part["gradients"].keys() == expected["gradients"].keys()
        for key, gradient in expected["gradients"].items():
            close(part["gradients"][key], gradient, key)
    assert math.fsum(float(gradient.abs().sum()) for gradient in expected["gradients"].values()) > 0.1
