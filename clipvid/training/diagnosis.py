"""Measurements that tell why a training with adapters succeeds or fails.

- Accuracy on training videos, in evaluation mode. If it is low, the optimization fails. If it is high and the accuracy
  on other videos is low, the model overfits.
- Length of each adapter's update, relative to the stream that it is added to.
- Accuracy without single adapters, and without all of them, after the last epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from clipvid.adapters import Adapter, AdapterOutput
from clipvid.data.manifest import Manifest
from clipvid.data.sampling import keyed_generator
from clipvid.data.splits import eval_loader
from clipvid.evaluation.summary import evaluate
from clipvid.model.feature_cache import FeatureCache
from clipvid.model.video_clip import VideoCLIP
from clipvid.training.config import FinetuneConfig
from clipvid.training.trainer import Trainer

TRAIN_TOP1, UPDATE, WITHOUT = "train_top1", "update/", "without/"
ALL = "all adapters"
_VIDEOS = 200  # of the training set, at most


class Validation(NamedTuple):
    """Model and the videos that it is evaluated on during training."""

    model: VideoCLIP
    loader: DataLoader
    videos: Manifest
    features: FeatureCache | None

    def evaluate(self, accelerator: Accelerator) -> dict[str, Any]:
        """Return the figures of the model. All processes call it together."""
        return evaluate(accelerator, self.model, self.loader, self.videos.classes, self.features)[1]


class Diagnosis:
    """Measurements of one training run.

    Args:
        config: Config of the run.
        validation: Model and evaluation videos.
        trainer: Its loader has the training videos.
    """

    def __init__(self, config: FinetuneConfig, validation: Validation, trainer: Trainer) -> None:
        self._accelerator = trainer.accelerator
        model, features = validation.model, validation.features
        if features is not None and any(layer.adapters for layer in model.encoder.layers[: features.depth]):
            features = None  # stored features contain the effects of these adapters, so that they cannot be measured
        train: Manifest = trainer.loader.dataset.manifest  # type: ignore[attr-defined]
        order = torch.randperm(len(train), generator=keyed_generator(config.seed, len(train)))
        videos = train.subset(sorted(order[:_VIDEOS].tolist()))

        def watched(videos: Manifest) -> Validation:
            loader = eval_loader(
                config.data,
                model,
                videos,
                trainer.accelerator,
                config.training.per_device_eval_batch_size,
                output_dir=trainer.output_dir,
                features=None if features is None else features.stored,
            )
            return Validation(model, loader, videos, features)

        self._training = watched(videos)
        self._validation = validation if features is validation.features else watched(validation.videos)

    def figures(self, last: bool) -> dict[str, float]:
        """Return the figures after an epoch by name, such as `update/ila.8`. All processes call it together."""
        with UpdateNorms(self._validation.model) as norms:
            trained = self._training.evaluate(self._accelerator)
        figures = {TRAIN_TOP1: trained["top1"]["value"]}
        figures |= {UPDATE + name: value for name, value in norms.ratios(self._accelerator).items()}
        return figures | (self._ablation() if last else {})

    def _ablation(self) -> dict[str, float]:
        """Return the accuracy on the evaluation videos without each adapter, and without all of them."""
        names = list(named_adapters(self._validation.model))
        figures = {}
        for label, off in [(name, [name]) for name in names] + ([(ALL, names)] if len(names) > 1 else []):
            with switched_off(self._validation.model, off):
                figures[WITHOUT + label] = self._validation.evaluate(self._accelerator)["top1"]["value"]
        return figures


def named_adapters(model: VideoCLIP) -> dict[str, Adapter]:
    """Return the adapters by `<adapter>.<block>`."""
    layers = enumerate(model.encoder.layers)
    return {f"{name}.{index}": adapter for index, layer in layers for name, adapter in layer.adapters.items()}


@contextmanager
def switched_off(model: VideoCLIP, names: list[str]) -> Iterator[None]:
    """Let adapters return no update and no context tokens inside the context."""
    adapters = named_adapters(model)
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(adapters[name].register_forward_hook(_silence))
        yield


def _silence(module: Adapter, inputs: tuple[Any, ...], output: AdapterOutput) -> AdapterOutput:
    return output._replace(update=None, context=None)


class UpdateNorms:
    """Length of each adapter's update relative to its input, over the forward passes inside the context."""

    def __init__(self, model: VideoCLIP) -> None:
        self._adapters = named_adapters(model)
        self._sums: dict[str, Tensor] = {}
        self._stack = ExitStack()

    def __enter__(self) -> UpdateNorms:
        """Start to measure."""
        for name, adapter in self._adapters.items():
            self._stack.enter_context(adapter.register_forward_hook(self._hook(name)))
        return self

    def __exit__(self, *error: object) -> None:
        """Stop measuring."""
        self._stack.close()

    def ratios(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the ratio of the root mean squares of update and input, by `<adapter>.<block>`, over all processes."""
        ratios = {}
        for name in self._adapters:
            own = self._sums.get(name, torch.zeros(2, dtype=torch.float64))
            update, stream = accelerator.reduce(own.float().to(accelerator.device)).tolist()
            ratios[name] = (update / stream) ** 0.5 if stream else 0.0
        return ratios

    def _hook(self, name: str) -> Any:
        def add(module: Adapter, inputs: tuple[Any, ...], output: AdapterOutput) -> None:
            if output.update is None:
                return
            squares = [tensor.detach().float().square().mean().cpu().double() for tensor in (output.update, inputs[0])]
            self._sums[name] = self._sums.get(name, torch.zeros(2, dtype=torch.float64)) + torch.stack(squares)

        return add
