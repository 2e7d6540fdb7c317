"""Models on several processes: spread over them (FSDP2), their tensors made whole again, their buffers made equal.

Launch files ask for it (`distributed_type: FSDP`, `fsdp_version: 2`); Accelerate does it, and here it is kept from
quietly doing something else: on CPUs it would train with DDP, and `fully_shard` refuses scalars such as CLIP's
`logit_scale`.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import accelerate
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, broadcast
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

from clipvid import InputError, RunError


def follow_launch_file(accelerator: Accelerator) -> None:
    """Use FSDP2 if the launch file names FSDP, on CPUs too.

    Raises:
        InputError: FSDP of version 1, FSDP without a launcher of several processes, or DeepSpeed.
        RunError: this version of Accelerate cannot be switched to FSDP2 on CPUs.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise InputError(
            "DeepSpeed keeps optimiser states that these checkpoints cannot hold; FSDP2 shards the same things: take "
            "configs/accelerate/fsdp2_zero2.yaml for ZeRO-2, configs/accelerate/fsdp2.yaml for ZeRO-3"
        )
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return
    if accelerator.distributed_type == DistributedType.MULTI_CPU:
        _shard_on_cpus(accelerator)
    if not accelerator.is_fsdp2:
        actual = f"{accelerator.distributed_type.value} with {accelerator.num_processes} process(es)"
        raise InputError(
            f"the launch file asks for FSDP, and Accelerate gives {actual}; expected fsdp_version: 2 and at least 2 "
            "processes: see configs/accelerate/fsdp2.yaml, or leave FSDP out"
        )


def _shard_on_cpus(accelerator: Accelerator) -> None:
    """Switch the Accelerator from DDP to FSDP2 on CPUs.

    Accelerate follows a launch file's FSDP on accelerators only, and has no option for CPUs. Its decision is the
    `distributed_type` of two shared states: `AcceleratorState` steers `prepare`, `PartialState` the collective
    operations. This is the only place that writes them.

    Raises:
        RunError: the switch has no effect, because Accelerate has changed.
    """
    plugin = FullyShardedDataParallelPlugin()
    accelerator.state.fsdp_plugin = plugin
    for state in (accelerator.state, PartialState()):
        state.distributed_type = DistributedType.FSDP
    # New objects, as Accelerate makes them inside.
    followed = [accelerator.distributed_type, AcceleratorState().distributed_type, PartialState().distributed_type]
    if set(followed) != {DistributedType.FSDP} or accelerator.is_fsdp2 != (plugin.fsdp_version == 2):
        raise RunError(
            f"accelerate {accelerate.__version__} does not shard on CPUs as this clipvid expects (it has "
            f"{', '.join(str(kind) for kind in followed)}): install another version, or leave FSDP out"
        )


def prepare(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """`accelerator.prepare`, with the scalars of a sharded model left whole on every process, their gradients
    averaged over the processes."""
    if accelerator.is_fsdp2:
        scalars = [parameter for parameter in model.parameters() if parameter.ndim == 0]
        accelerator.state.fsdp_plugin.ignored_modules = [nn.ParameterList(scalars)]

        def average(scalar: Tensor) -> None:
            if scalar.grad is not None:
                scalar.grad.copy_(torch.as_tensor(accelerator.reduce(scalar.grad, "mean")))

        for scalar in scalars:
            if scalar.requires_grad:
                scalar.register_post_accumulate_grad_hook(average)
        # Outputs of a forward are views of tokens; nobody edits them in place.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    wrapped, prepared = accelerator.prepare(model, optimizer)
    return wrapped, prepared


def is_sharded(model: nn.Module) -> bool:
    """Some parameter is spread over processes."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def share_buffers(accelerator: Accelerator, model: nn.Module) -> None:
    """BatchNorm statistics differ between processes; everyone evaluates with those of the first."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            buffer.copy_(broadcast(buffer))


def full(tensor: Tensor) -> Tensor:
    """A sharded tensor made whole, by all processes together; a whole one as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor, sharing its memory; a whole tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(nested: Any) -> Any:
    """A copy on the CPU of every tensor in `nested`, sharded ones made whole; all processes call it together."""

    def copy(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return full(value).detach().to("cpu", copy=True).contiguous()

    return tree_map(copy, nested)


def spread(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, the same on all processes, sharded as `like` is."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a whole state into an optimiser whose parameters may be sharded; how it computes stays its own choice."""
    own = {"fused": optimizer.defaults.get("fused"), "foreach": optimizer.defaults.get("foreach")}
    optimizer.load_state_dict(state | {"param_groups": [group | own for group in state["param_groups"]]})
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if value.shape == parameter.shape and not isinstance(value, DTensor):
                values[key] = spread(value, parameter)
