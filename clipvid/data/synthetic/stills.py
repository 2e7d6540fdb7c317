"""Captioned stills of the synthetic world: what the small CLIP is trained on."""

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
    """Stills with captions, rendered once and held in memory (S x S x 3 bytes each), by key (epoch, index).

    Items: `frames` uint8 [1, 3, S, S], shifted by up to a twelfth of S as (seed, epoch, index) says; `tokens`
    int64 [L]; `index`. `frames` and `captions` hold all of them, unshifted.

    Args:
        world: what is drawn. count: how many stills. split: name of the random stream. seed: of the shifts.
        image_size: side S in pixels that stills are resized to. tokenize: texts -> token ids [K, L].
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
