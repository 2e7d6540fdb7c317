"""Optimizer groups and the learning-rate schedule."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from clipvid import InputError
from clipvid.model.video_clip import VideoCLIP
from clipvid.registry import FINITE, check_option, check_ranges


@dataclass(frozen=True)
class ParameterGroup:
    """Learning rate and weight decay of parameters whose name matches the shell pattern `match`."""

    match: str
    lr: float
    weight_decay: float

    def __post_init__(self) -> None:
        check_ranges("optim.groups", self, lr=(0, FINITE), weight_decay=(0, FINITE))


SCHEDULES = (
    "constant",
    "constant_with_warmup",
    "cosine",
    "cosine_with_restarts",
    "inverse_sqrt",
    "linear",
    "polynomial",
    "timm_cosine",
)
FLOORED = ("cosine", "timm_cosine")


@dataclass(frozen=True)
class OptimConfig:
    """Options of AdamW and its schedule.

    Attributes:
        lr: Learning rate.
        head_lr: Learning rate of a head without text (`linear`, `cosine`, `class_token`) that starts from random
            weights, since `training.head_epochs` is 0 or does not apply. Also that of the bias of
            `model.multi_label`. Null for `lr`. `groups` take precedence.
        weight_decay: Weight decay. Biases and other one-dimensional parameters have none.
        betas: Coefficients of AdamW's moving averages.
        eps: Term added to AdamW's denominator.
        groups: Parameter groups, of which the first match applies. Other parameters use `lr` and `weight_decay`.
        layer_decay: Factor on the learning rate of pretrained weights for every layer between them and their tower's
            output; 1 for none. With `full`, 0.65 to 0.9 is usual (BEiT, https://arxiv.org/abs/2106.08254). New weights
            in a tower (adapters, LoRA, context) keep their learning rate.
        lr_scheduler_type: One of `SCHEDULES`. These are those of `transformers` without further arguments, and
            `timm_cosine`, whose cosine starts at the first step, with the warm-up in place of its beginning.
        warmup_ratio: Share of warm-up in all steps.
        min_lr: Learning rate at the end of a cosine schedule, the same for all groups.
    """

    lr: float = 5e-4
    head_lr: float | None = 0.01
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    groups: list[ParameterGroup] = field(default_factory=list)
    layer_decay: float = 1.0
    lr_scheduler_type: str = "cosine"
    warmup_ratio: float = 0.1
    min_lr: float = 0.0

    def __post_init__(self) -> None:
        check_ranges("optim", self, lr=(0, FINITE), weight_decay=(0, FINITE), eps=(0, 1), warmup_ratio=(0, 1))
        check_ranges("optim", self, **({} if self.head_lr is None else {"head_lr": (0, FINITE)}))
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"optim.betas={self.betas}: expected two numbers from 0 to below 1")
        if not 0 < self.layer_decay <= 1:
            raise InputError(f"layer_decay={self.layer_decay} must be in (0, 1]; 0.75 is usual, 1 for none")
        check_option("optim", "lr_scheduler_type", self.lr_scheduler_type, SCHEDULES)
        rates = [self.lr, *(group.lr for group in self.groups), *([] if self.head_lr is None else [self.head_lr])]
        check_ranges("optim", self, min_lr=(0, min(rates)))
        if self.min_lr > 0 and self.lr_scheduler_type not in FLOORED:
            schedules = " or ".join(FLOORED)
            raise InputError(
                f"optim.min_lr={self.min_lr} needs lr_scheduler_type {schedules}, got {self.lr_scheduler_type}"
            )


class SkippingAdamW(torch.optim.AdamW):
    """AdamW with a fused step that can be skipped on the device, without a copy to the host.

    Attributes:
        found_inf: Flag read by torch's fused step: None or 0 to step, 1 to keep weights and moments unchanged. A
            gradient scaler also sets and deletes it on the instance.
    """

    found_inf: Tensor | None = None

    def __init__(self, groups: list[dict[str, Any]], **options: Any) -> None:
        super().__init__(groups, fused=True, **options)

    def skip_next_step(self, flag: Tensor) -> None:
        """Skip the next `step` if `flag`, a float scalar on the parameters' device, is 1."""
        self.found_inf = flag


def build_optimizer(model: nn.Module, config: OptimConfig) -> SkippingAdamW:
    """Build AdamW over exactly the parameters that require gradients.

    Raises:
        InputError: There is nothing to train, or a group matches no parameter.
    """
    depths = {} if config.layer_decay == 1 else layers_above(model)
    head = model.head if isinstance(model, VideoCLIP) and not model.head.needs_text else nn.Identity()
    bias = [] if not isinstance(model, VideoCLIP) or model.label_bias is None else [model.label_bias]
    fresh = {id(parameter) for parameter in (*head.parameters(), *bias)}
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    unmatched = {group.match for group in config.groups}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        group = next((group for group in config.groups if fnmatch(name, group.match)), None)
        if group is not None:
            unmatched.discard(group.match)
        base = config.head_lr if config.head_lr is not None and id(parameter) in fresh else config.lr
        lr, decay = (group.lr, group.weight_decay) if group else (base, config.weight_decay)
        # Scalars are not sharded, and a fused step cannot mix them with sharded parameters.
        lr *= config.layer_decay ** depths.get(id(parameter), 0)
        key = (lr, decay if parameter.ndim > 1 else 0.0, parameter.ndim == 0)
        groups.setdefault(key, []).append(parameter)
    if unmatched:
        raise InputError(
            f"optim.groups: no trained parameter matches {sorted(unmatched)}; see model.named_parameters()"
        )
    if not groups:
        raise InputError(
            "nothing to train: no parameter requires a gradient. Choose a head (model.head=linear), an adapter "
            "(there is one without model.adapter), or more of the tower (model.tune=[full]). clipvid evaluate measures "
            "CLIP without training"
        )
    return SkippingAdamW(
        [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay, _), params in groups.items()],
        betas=config.betas,
        eps=config.eps,
    )


def matching_groups(model: nn.Module, config: OptimConfig) -> OptimConfig:
    """Return the config without the groups that match no trained parameter, such as those of removed adapters."""
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [group for group in config.groups if any(fnmatch(name, group.match) for name in trained)]
    return replace(config, groups=groups)


def layers_above(model: nn.Module) -> dict[int, int]:
    """Return the number of layers between each pretrained parameter, by its id, and the output of its tower."""
    stages = model.backbone.stages() if isinstance(model, VideoCLIP) else []
    return {
        id(parameter): above for tower in stages for above, stage in enumerate(reversed(tower)) for parameter in stage
    }


def describe_groups(model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """Return a table of trained modules with parameters, learning rate, weight decay and share of the model."""
    settings = {id(value): group for group in optimizer.param_groups for value in group["params"]}
    rows: dict[tuple[str, str, str], tuple[int, set[int]]] = {}
    for name, parameter in model.named_parameters():
        group = settings.get(id(parameter))
        module, index = _module_of(name) if group else ("frozen", None)
        # The scheduler sets `lr` before the first step; the configured value is `initial_lr`.
        key = (
            (module, f"{group.get('initial_lr', group['lr']):.3g}", f"{group['weight_decay']:g}")
            if group
            else (module, "", "")
        )
        count, indices = rows.get(key, (0, set()))
        rows[key] = count + parameter.numel(), indices | ({index} if index is not None else set())
    total = sum(count for count, _ in rows.values())
    frozen = rows.pop(("frozen", "", ""), (0, set()))
    trained = total - frozen[0]
    lines = [("module", "parameters", "lr", "weight decay", "share")]
    lines += [
        (_with_range(module, indices), f"{count:,}", lr, decay, f"{count / total:.2%}")
        for (module, lr, decay), (count, indices) in rows.items()
    ]
    lines += [("trained", f"{trained:,}", "", "", f"{trained / total:.2%}")]
    lines += [("frozen", f"{frozen[0]:,}", "", "", f"{frozen[0] / total:.2%}")]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def build_scheduler(
    optimizer: torch.optim.Optimizer, config: OptimConfig, num_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Build the schedule of warm-up and decay over `num_steps` optimizer steps."""
    from transformers import get_scheduler

    warmup = round(config.warmup_ratio * num_steps)
    if config.lr_scheduler_type == "timm_cosine" or config.min_lr > 0:
        start = 0 if config.lr_scheduler_type == "timm_cosine" else warmup
        floors = [min(1.0, config.min_lr / group["lr"]) if group["lr"] else 0.0 for group in optimizer.param_groups]
        factors: list[Callable[[int], float]] = [
            partial(cosine_factor, warmup=warmup, start=start, end=num_steps, floor=floor) for floor in floors
        ]
        return torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
    return get_scheduler(config.lr_scheduler_type, optimizer, num_warmup_steps=warmup, num_training_steps=num_steps)


def cosine_factor(step: int, warmup: int, start: int, end: int, floor: float) -> float:
    """Return the learning rate of a step, relative to the highest one.

    Args:
        step: Number of the step, from 0.
        warmup: Steps of linear warm-up from 0.
        start: Step at which the cosine begins.
        end: Step at which the cosine reaches `floor`, and stays there.
        floor: Lowest learning rate after the warm-up, relative to the highest one.
    """
    if step < warmup:
        return step / warmup
    share = min(1.0, (step - start) / max(1, end - start))
    return floor + (1 - floor) * (1 + math.cos(math.pi * share)) / 2


def _module_of(name: str) -> tuple[str, int | None]:
    """Return the row of a parameter, with `{}` for the index of its block, and that index."""
    block = re.match(r"(.+\.(?:layers|resblocks))\.(\d+)\.((?:adapters\.)?\w+(?:\.attn|\.mlp)?)", name)
    if block is None:
        return ".".join(name.split(".")[:3]), None
    part = f"{block[3]} (lora)" if ".lora_" in name else block[3]
    return f"{block[1]}.{{}}.{part}", int(block[2])


def _with_range(module: str, indices: set[int]) -> str:
    """Insert block indices into `encoder.layers.{}.block`: `6-11`, or `0,5,11` with gaps."""
    if not indices:
        return module
    first, last = min(indices), max(indices)
    whole = last - first + 1 == len(indices) > 1
    return module.format(f"{first}-{last}" if whole else ",".join(map(str, sorted(indices))))
