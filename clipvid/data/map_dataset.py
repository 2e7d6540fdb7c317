"""Manifests of map-style Datasets with labeled frames.

Shapes: N frames of an item, K classes.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from clipvid import InputError
from clipvid.data.lists.samples import UNREAD, ClassInfo, Sample, Samples
from clipvid.data.manifest import Manifest


class MapDataset(Protocol):
    """Map-style Dataset, such as a `torch.utils.data.Dataset` with a length."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


def dataset_manifest(dataset: MapDataset, name: str, classes: Sequence[str]) -> Manifest:
    """Return a manifest of the items of a Dataset.

    An item is `{"frames": uint8 [N, 3, H, W], "label": int}` with N >= 1 and a label in 0..K-1. The first item is
    checked here, others when a clip is drawn from them. The hash of the manifest covers the number of items and the
    classes, but not frames and labels.

    Args:
        dataset: The Dataset. Worker processes get copies of it.
        name: Prefix of the sample names: `train` gives `train[17]`.
        classes: Names of the K classes in the order of their labels.

    Raises:
        InputError: The object is not a map-style Dataset, has no items or an invalid first item, or class names are
            invalid.
    """
    infos = _class_infos(classes)
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise InputError(
            f"{name} is a {type(dataset).__name__}; expected a map-style Dataset, which has a length and an item for "
            "each index"
        )
    if len(dataset) < 1:
        raise InputError(f"{name} is a {type(dataset).__name__} of length 0; expected at least 1 item")
    samples = DatasetSamples(dataset, name, len(infos))
    samples.read(0)
    return Manifest(samples, infos, Path())


@dataclass(frozen=True)
class DatasetSamples(Samples):
    """Samples of a Dataset, one per item.

    Attributes:
        dataset: The Dataset.
        name: Prefix of the sample names.
        num_classes: Number of classes K.
    """

    dataset: MapDataset
    name: str
    num_classes: int

    def __len__(self) -> int:
        return len(self.dataset)

    def at(self, place: int) -> Sample:
        """Return the sample of an item. The item is read later."""
        return Sample(f"{self.name}[{place}]", UNREAD, item=partial(self.read, place))

    def read(self, index: int) -> tuple[Tensor, int]:
        """Return frames uint8 [N, 3, H, W] and label of an item.

        Raises:
            InputError: The item has another form.
        """
        item = self.dataset[index]
        if not (isinstance(item, Mapping) and {"frames", "label"} <= item.keys()):
            actual = (
                f"a mapping with the keys {list(item)}" if isinstance(item, Mapping) else f"a value of {_kind(item)}"
            )
            raise self._wrong(index, actual, 'a mapping with "frames" and "label"')
        frames = item["frames"]
        is_tensor = isinstance(frames, Tensor)
        if not is_tensor or frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3:
            actual = f"{frames.dtype} {list(frames.shape)}" if is_tensor else _kind(frames)
            raise self._wrong(index, f"frames of {actual}", "a tensor uint8 [N, 3, H, W]")
        if not frames.numel():
            raise self._wrong(index, f"frames of {list(frames.shape)}", "N, H and W of at least 1")
        return frames, self._label(index, item["label"])

    def _label(self, index: int, value: Any) -> int:
        expected = f"an int from 0 to {self.num_classes - 1}, for {self.num_classes} classes"
        try:
            label = UNREAD if isinstance(value, bool) else operator.index(value)
        except TypeError:
            raise self._wrong(index, f"label {value!r} of {_kind(value)}", expected) from None
        if isinstance(value, bool) or not 0 <= label < self.num_classes:
            raise self._wrong(index, f"label {value!r}", expected)
        return label

    def _wrong(self, index: int, actual: str, expected: str) -> InputError:
        return InputError(f"{self.name}[{index}] has {actual}; expected {expected}")


def _kind(value: object) -> str:
    return f"type {type(value).__name__}"


def _class_infos(classes: Sequence[str]) -> tuple[ClassInfo, ...]:
    names = [classes] if isinstance(classes, str) else list(classes)
    is_valid = all(isinstance(name, str) and name.strip() for name in names) and len(set(names)) == len(names)
    if isinstance(classes, str) or not names or not is_valid:
        raise InputError(f"classes={classes!r}: expected a list of different names, one for each label")
    return tuple(ClassInfo(place, name) for place, name in enumerate(names))
