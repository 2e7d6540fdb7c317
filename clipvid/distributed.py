"""Models on several processes: FSDP2, full and local tensors, shared buffers.

Launch files select FSDP2 (`distributed_type: FSDP`, `fsdp_version: 2`), and Accelerate applies it. This module covers
two gaps: on CPUs Accelerate silently uses DDP, and `fully_shard` refuses scalars such as CLIP's `logit_scale`. It also
runs tasks of the main process that others wait for.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar, cast

import accelerate
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, broadcast, broadcast_object_list
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

from clipvid import InputError, RunError

T = TypeVar("T")


def by_main_process(accelerator: Accelerator, task: Callable[[], T], seconds: float = 10.0) -> T:
    """Run a task in the main process only, and return its result in all processes.

    The others wait in collective operations of at most `seconds`, so that a long task exceeds no timeout of theirs. An
    error is raised in all processes. All processes call this together.
    """
    if accelerator.num_processes == 1:
        return task()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(task) if accelerator.is_main_process else None
        outcome: tuple[T | None, BaseException | None] | None = None
        while outcome is None:
            if future is not None and wait([future], seconds).done:
                error = future.exception()
                outcome = (None, error) if error is not None else (future.result(), None)
            outcome = broadcast_object_list([outcome])[0]
    result, error = outcome
    if error is not None:
        raise error
    return cast(T, result)


def follow_launch_file(accelerator: Accelerator) -> None:
    """Use FSDP2 if the launch file selects FSDP, on CPUs too.

    Raises:
        InputError: The launch file selects FSDP version 1, FSDP with a single process, or DeepSpeed.
        RunError: This version of Accelerate cannot be switched to FSDP2 on CPUs.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise InputError(
            "DeepSpeed is not supported, since checkpoints cannot contain its optimizer states; FSDP2 is equivalent: "
            "use configs/accelerate/fsdp2_zero2.yaml for ZeRO-2, configs/accelerate/fsdp2.yaml for ZeRO-3"
        )
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return
    if accelerator.distributed_type == DistributedType.MULTI_CPU:
        _shard_on_cpus(accelerator)
    if not accelerator.is_fsdp2:
        actual = f"{accelerator.distributed_type.value} with {accelerator.num_processes} process(es)"
        raise InputError(
            f"the launch file selects FSDP, but Accelerate uses {actual}; expected fsdp_version: 2 and at least 2 "
            "processes, as in configs/accelerate/fsdp2.yaml, or a launch file without FSDP"
        )


def _shard_on_cpus(accelerator: Accelerator) -> None:
    """Switch the Accelerator from DDP to FSDP2 on CPUs.

    Accelerate uses FSDP on GPUs only and has no option for CPUs. Its decision is the `distributed_type` of two shared
    states: `AcceleratorState` controls `prepare`, `PartialState` the collective operations. This is the only place that
    writes them.

    Raises:
        RunError: The switch has no effect, because Accelerate has changed.
    """
    plugin = FullyShardedDataParallelPlugin()
    accelerator.state.fsdp_plugin = plugin
    for state in (accelerator.state, PartialState()):
        state.distributed_type = DistributedType.FSDP
    # Create new state objects, as Accelerate does internally.
    followed = [accelerator.distributed_type, AcceleratorState().distributed_type, PartialState().distributed_type]
    if set(followed) != {DistributedType.FSDP} or accelerator.is_fsdp2 != (plugin.fsdp_version == 2):
        raise RunError(
            f"accelerate {accelerate.__version__} does not shard on CPUs as this clipvid expects (it has "
            f"{', '.join(str(kind) for kind in followed)}): install another version, or do not use FSDP"
        )


def prepare(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Call `accelerator.prepare`, with scalars of a sharded model kept whole and their gradients averaged."""
    if accelerator.is_fsdp2:
        scalars = [parameter for parameter in model.parameters() if parameter.ndim == 0]
        accelerator.state.fsdp_plugin.ignored_modules = [nn.ParameterList(scalars)]

        def average(scalar: Tensor) -> None:
            if scalar.grad is not None:
                scalar.grad.copy_(torch.as_tensor(accelerator.reduce(scalar.grad, "mean")))

        for scalar in scalars:
            if scalar.requires_grad:
                scalar.register_post_accumulate_grad_hook(average)
        # Outputs of a forward pass are views of tokens, which are never modified in place.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    wrapped, prepared = accelerator.prepare(model, optimizer)
    return wrapped, prepared


def is_sharded(model: nn.Module) -> bool:
    """Return True if a parameter is sharded over processes."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def share_buffers(accelerator: Accelerator, model: nn.Module) -> None:
    """Broadcast buffers of the first process, since BatchNorm statistics differ between processes."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            buffer.copy_(broadcast(buffer))


def full(tensor: Tensor) -> Tensor:
    """Return a sharded tensor as a whole one, gathered by all processes. A whole tensor is returned unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a sharded tensor, sharing its memory. A whole tensor is returned unchanged."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(nested: Any) -> Any:
    """Copy every tensor in `nested` to the CPU, unsharded. All processes call this together."""

    def copy(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return full(value).detach().to("cpu", copy=True).contiguous()

    return tree_map(copy, nested)


def spread(value: Tensor, like: Tensor) -> Tensor:
    """Shard a whole tensor, the same on all processes, like `like`."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an unsharded state into an optimizer with possibly sharded parameters. Implementation flags are kept."""
    own = {"fused": optimizer.defaults.get("fused"), "foreach": optimizer.defaults.get("foreach")}
    optimizer.load_state_dict(state | {"param_groups": [group | own for group in state["param_groups"]]})
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if value.shape == parameter.shape and not isinstance(value, DTensor):
                values[key] = spread(value, parameter)
