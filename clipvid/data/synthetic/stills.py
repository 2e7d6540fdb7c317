"""Captioned stills of the synthetic world, the training data of the small CLIP."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from clipvid.data.sampling import keyed_generator
from clipvid.data.synthetic.world import WorldConfig, render_still
from clipvid.data.transforms import apply_keyed, eval_transform

_CHUNK = 256


class StillsDataset(Dataset[dict[str, Any]]):
    """Stills with captions, rendered once and kept in memory (S x S x 3 bytes each), by key (epoch, index).

    An item has `frames` uint8 [1, 3, S, S], `tokens` int64 [L] and `index`. The frames are shifted by up to S / 12,
    depending on (seed, epoch, index). The attributes `frames` and `captions` contain all items without shift.

    Args:
        world: World to draw from.
        count: Number of stills.
        split: Name of the random stream.
        seed: Seed of the shifts.
        image_size: Side S of the resized stills in pixels.
        tokenize: Function from texts to token ids [K, L].
    """

    def __init__(self, world: WorldConfig, count: int, split: str, seed: int, image_size: int, tokenize: Any):
        chunks = [range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            stills = [still for part in pool.map(partial(_render, world, split), chunks) for still in part]
        images = torch.from_numpy(np.stack([image for image, _ in stills])).permute(0, 3, 1, 2)
        self.frames: Tensor = eval_transform(image_size)(images)
        self.captions = [caption for _, caption in stills]
        self.tokens: Tensor = tokenize(self.captions)
        self.seed = seed
        self.shift = v2.RandomCrop(image_size, padding=image_size // 12, padding_mode="edge")

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        shifted = apply_keyed(self.shift, self.frames[index], keyed_generator(self.seed, epoch, index))
        return {"frames": shifted[None], "tokens": self.tokens[index], "index": index}


def _render(world: WorldConfig, split: str, indices: range) -> list[tuple[np.ndarray, str]]:
    return [render_still(world, index, split) for index in indices]
