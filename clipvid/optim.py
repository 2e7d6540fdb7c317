"""Optimiser groups and the learning-rate schedule."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatch

import torch
from torch import nn
from transformers import get_scheduler


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters whose name matches `match` (shell pattern) get their own lr and weight_decay."""

    match: str
    lr: float
    weight_decay: float


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule.

    groups: first match wins; parameters that match none take `lr` and `weight_decay`. Biases and other
        one-dimensional parameters have no decay.
    lr_scheduler_type: a name of `transformers.SchedulerType`. warmup_ratio: share of all steps.
    """

    lr: float = 5e-4
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    groups: list[ParameterGroup] = field(default_factory=list)
    lr_scheduler_type: str = "cosine"
    warmup_ratio: float = 0.1


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over exactly the parameters that require gradients; its fused step obeys `found_inf` on the device.

    Raises:
        ValueError: nothing to train, or a group that matches nothing.
    """
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    unmatched = {group.match for group in config.groups}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        group = next((group for group in config.groups if fnmatch(name, group.match)), None)
        if group is not None:
            unmatched.discard(group.match)
        lr, decay = (group.lr, group.weight_decay) if group else (config.lr, config.weight_decay)
        # Scalars stay whole where all else is sharded, and a fused step takes one kind at a time.
        key = (lr, decay if parameter.ndim > 1 else 0.0, parameter.ndim == 0)
        groups.setdefault(key, []).append(parameter)
    if unmatched:
        raise ValueError(
            f"optim.groups: no trained parameter matches {sorted(unmatched)}; see model.named_parameters()"
        )
    if not groups:
        raise ValueError(
            "nothing to train: no parameter requires a gradient. Choose an adapter (model.adapter=ila), a trainable "
            "head (model.head=linear) or more of the tower (model.tune=[full])"
        )
    return torch.optim.AdamW(
        [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay, _), params in groups.items()],
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def build_scheduler(
    optimizer: torch.optim.Optimizer, config: OptimConfig, num_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Warm-up and decay over `num_steps` optimiser steps."""
    warmup = round(config.warmup_ratio * num_steps)
    return get_scheduler(config.lr_scheduler_type, optimizer, num_warmup_steps=warmup, num_training_steps=num_steps)
