"""Cost of a pass through a model: seconds, multiply-adds, memory.

Shapes: B clips, T frames, S image side.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, dataclass
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import track
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from clipvid.files import write_json, write_text
from clipvid.runs.config_files import config_record
from clipvid.runs.lock import locked
from clipvid.runs.output_folder import prepare_output_dir

KeyT = TypeVar("KeyT", bound=Hashable)


@dataclass(frozen=True)
class Pass:
    """Call of a model on frames [B, T, 3, S, S].

    Attributes:
        model: The model.
        call: Function that returns any tensor, or in training the scalar loss for the backward pass.
        training: Run forward and backward pass in training mode, instead of a forward pass in evaluation mode without
            gradients.
    """

    model: nn.Module
    call: Callable[[Tensor], Tensor]
    training: bool = False

    def prepare(self) -> None:
        """Set the mode and drop old gradients. Not measured."""
        self.model.train(self.training)
        self.model.zero_grad(set_to_none=True)

    def run(self, frames: Tensor) -> None:
        """Run the measured part."""
        with torch.set_grad_enabled(self.training):
            result = self.call(frames)
            if self.training:
                result.backward()


def time_passes(passes: Mapping[KeyT, Pass], frames: Tensor, repeats: int) -> dict[KeyT, list[float]]:
    """Return the seconds of every pass, `repeats` times each.

    Rounds iterate over all passes, so that temporary load of the machine affects all of them. A first round is not
    counted.
    """
    seconds: dict[KeyT, list[float]] = {key: [] for key in passes}
    for _ in track(range(repeats + 1), "timing, in rounds", console=Console(stderr=True), transient=True):
        for key, one in passes.items():
            one.prepare()
            _wait_for(frames.device)
            start = time.perf_counter()
            one.run(frames)
            _wait_for(frames.device)
            seconds[key].append(time.perf_counter() - start)
            one.prepare()
    return {key: values[1:] for key, values in seconds.items()}


def count_macs(one: Pass, frames: Tensor) -> int:
    """Count the multiply-adds of matrix products and convolutions in a pass, half of torch's FLOPs.

    Uses gradients and unfused attention, since fused kernels can escape the counter.
    """
    one.prepare()
    formulas = {torch.ops.aten.convolution_backward: _convolution_backward_flops}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        result = one.call(frames)
        if one.training:
            result.backward()
    one.prepare()
    return counter.get_total_flops() // 2


def _convolution_backward_flops(grad: Any, x: Any, weight: Any, *args: Any, **_: Any) -> int:
    """Count the FLOPs of a convolution's backward pass, where input and weight gradient each cost a forward pass.

    torch's formula (2.15) treats the weight gradient of a grouped convolution as ungrouped. For a depthwise convolution
    of C channels, its count is C times too large. Arguments are the shapes of aten::convolution_backward.
    """
    transposed, output_mask = args[4], args[7]
    places = x[2:] if transposed else grad[2:]
    return 2 * x[0] * prod(places) * prod(weight) * sum(output_mask[:2])


def peak_memory(one: Pass, frames: Tensor) -> int | None:
    """Return the peak memory of a pass in bytes, minus the memory before: activations, gradients, temporaries.

    Reported by the allocator: CUDA's counter, and the profiler's record on CPU. Unlike resident memory, the result does
    not include imports and weights, and is the same in every run. Internal buffers of BLAS or scipy are not included.
    Other devices return None.
    """
    one.prepare()
    measure = {"cpu": _peak_on_cpu, "cuda": _peak_on_cuda}.get(frames.device.type)
    peak = None if measure is None else measure(one, frames)
    one.prepare()
    return peak


def _peak_on_cpu(one: Pass, frames: Tensor) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # silences the profiler on stderr
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        one.run(frames)
    assert record.profiler is not None
    events = record.profiler.kineto_results.events()
    return max(accumulate(event.nbytes() for event in events if event.name() == "[memory]"), default=0)


def _peak_on_cuda(one: Pass, frames: Tensor) -> int:
    torch.cuda.reset_peak_memory_stats(frames.device)
    before = torch.cuda.memory_allocated(frames.device)
    one.run(frames)
    return torch.cuda.max_memory_allocated(frames.device) - before


def _wait_for(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def trained_parameters(model: nn.Module) -> int:
    """Count the trained parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def describe_machine() -> dict[str, str]:
    """Return device, threads and torch's version."""
    device = Accelerator().device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "device": name,
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} CPU threads",
        "torch": f"torch {torch.__version__}",
    }


def run_cost_benchmark(
    config: Any, measure: Callable[[Any], list[Any]], render: Callable[[list[Any], Any], str]
) -> None:
    """Measure, print the table, and write table.md and metrics.json to `config.output_dir`.

    Args:
        config: Config of the benchmark.
        measure: Function that returns the rows, which are dataclasses.
        render: Function from rows and config to the Markdown table.
    """
    output = Path(config.output_dir)
    with locked(output):
        prepare_output_dir(output, config)
        rows = measure(config)
        table = render(rows, config)
        Console().print(Markdown(table))
        write_text(output / "table.md", table)
        record = {"machine": describe_machine(), "config": config_record(config)}
        write_json(output / "metrics.json", {"rows": [asdict(row) for row in rows]} | record)
