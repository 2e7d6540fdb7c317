"""open_clip's own training loop, as a reference to compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor


class Pairs(Protocol):
    """Batches of normalized images [B, 3, S, S] and tokens [B, L].

    Attributes:
        num_batches: Number of batches.
        num_samples: Number of pairs.
    """

    num_batches: int
    num_samples: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...


def train_one_epoch(
    model: Any,
    pairs: Pairs,
    loss: Callable[..., dict[str, Tensor]],
    optimizer: torch.optim.Optimizer,
    clip_norm: float,
    device: torch.device,
) -> None:
    """Train a model of open_clip in float32 with `open_clip_train`, without its logs.

    Args:
        model: See `Backbone.open_clip_model`.
        pairs: Batches of the epoch.
        loss: Called like open_clip's losses.
        optimizer: Of the model.
        clip_norm: Norm to which gradients are clipped.
        device: Device of the model.

    Raises:
        ImportError: This version of open_clip has no training loop.
    """
    from open_clip_train.params import parse_args
    from open_clip_train.train import train_one_epoch as train

    size = pairs.num_samples // pairs.num_batches
    args = parse_args(["--precision", "fp32", "--batch-size", str(size), "--grad-clip-norm", str(clip_norm)])
    vars(args).update(device=str(device), distributed=False, world_size=1, rank=0, local_rank=0, skip_scheduler=True)
    vars(args).update(wandb=False, tensorboard=False, distill=False, log_every_n_steps=10**9)
    data = {"train": SimpleNamespace(dataloader=pairs, set_epoch=lambda epoch: None)}
    model.output_dict = True
    train(model, data, loss, 0, optimizer, None, None, None, args)
