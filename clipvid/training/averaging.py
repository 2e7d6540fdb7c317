"""Trained weights of a run: current, averaged over steps, and best.

The average is exponential (Polyak & Juditsky, 1992, https://doi.org/10.1137/0330046).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from clipvid.distributed import is_sharded, local, spread, whole

Weights = dict[str, Tensor]


class TrainedWeights:
    """Tensors of a model, sharded or not, by their names in its `state_dict`.

    Args:
        model: The model.
        names: Names of trained tensors and their buffers.
        ema_decay: `average = ema_decay * average + (1 - ema_decay) * weights` at every step, or 0 for no average.
            Buffers are averaged with the parameters. An average replaces the weights in evaluation, comparison and the
            result.
    """

    def __init__(self, model: nn.Module, names: list[str], ema_decay: float = 0.0):
        self._model, self._names = model, names
        self._fixed = None if is_sharded(model) else self._find()
        self._update = get_ema_multi_avg_fn(ema_decay)
        self._average = {name: t.detach().clone() for name, t in self.current().items()} if ema_decay else None
        self._best: Weights | None = None

    def current(self) -> Weights:
        """Return the tensors of the model without copying. Those of a sharded model are valid until its next use."""
        return self._find() if self._fixed is None else self._fixed

    def _find(self) -> Weights:
        state = self._model.state_dict(keep_vars=True)
        return {name: state[name] for name in self._names}

    @torch.no_grad()
    def follow(self) -> None:
        """Update the average by one step."""
        if self._average is None:
            return
        current = self.current()
        floating = [name for name, tensor in current.items() if tensor.is_floating_point()]
        self._update([local(self._average[name]) for name in floating], [local(current[name]) for name in floating], 0)
        for name in current.keys() - set(floating):
            self._average[name].copy_(current[name])

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """Use the averaged weights within the block, if there is an average."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        if self._average is None:
            return
        for name, tensor in self.current().items():
            own, average = local(tensor), local(self._average[name])
            held = own.clone()
            own.copy_(average)
            average.copy_(held)

    def keep_best(self) -> None:
        """Store the evaluated weights as the best so far. All processes call this together, as the methods below."""
        self._best = whole(self.current())

    def result(self, best: bool) -> Weights:
        """Return the result on the CPU: the best weights if requested and available, otherwise average or last."""
        if best and self._best is not None:
            return self._best
        weights: Weights = whole(self.current() if self._average is None else self._average)
        return weights

    def state(self) -> dict[str, Weights]:
        """Return all weights on the CPU, unsharded, for a checkpoint."""
        weights = {"model": whole(self.current())}
        if self._average is not None:
            weights["ema"] = whole(self._average)
        if self._best is not None:
            weights["best"] = self._best
        return weights

    @torch.no_grad()
    def load(self, state: dict[str, Weights]) -> None:
        """Restore average and best. The model's weights are loaded separately, before sharding."""
        if self._average is not None:
            for name, tensor in self._average.items():
                tensor.copy_(spread(state["ema"][name], tensor))
        self._best = state.get("best")
