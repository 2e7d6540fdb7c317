"""Augmentation and resizing of clips, uint8 [T, 3, H, W] in and out, the same for every frame of a clip.

Pixels are normalized later: bytes are copied to the device and become floats there.
"""

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from clipvid import InputError

Transform: TypeAlias = Callable[[Tensor], Tensor]


def train_transform(
    image_size: int,
    *,
    scale: tuple[float, float] = (0.5, 1.0),
    rand_augment: int = 0,
    color_jitter: float = 0.0,
    grayscale: float = 0.0,
    random_erasing: float = 0.0,
) -> v2.Compose:
    """Return random augmentation, uint8 [T, 3, H, W] -> uint8 [T, 3, S, S]. Apply it with `apply_keyed`.

    Args:
        image_size: Side S in pixels.
        scale: Minimum and maximum share of the area that the random crop takes.
        rand_augment: Magnitude, 1 to 30, of two random operations (https://arxiv.org/abs/1909.13719), or 0 for none.
        color_jitter: Strength of brightness, contrast and saturation changes. Hue changes by a quarter of it.
        grayscale: Probability of converting to grayscale.
        random_erasing: Probability of one black rectangle, in the same place in all frames.
    """
    steps: list[nn.Module] = [
        v2.RandomResizedCrop(image_size, scale=scale, interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
    ]
    if rand_augment > 0:
        steps.append(v2.RandAugment(2, rand_augment, interpolation=v2.InterpolationMode.BILINEAR))
    if color_jitter > 0:
        strength = min(color_jitter / 4, 0.5)
        steps.append(v2.ColorJitter(color_jitter, color_jitter, color_jitter, strength))
    if grayscale > 0:
        steps.append(v2.RandomGrayscale(grayscale))
    if random_erasing > 0:
        steps.append(v2.RandomErasing(random_erasing))
    return v2.Compose(steps)


def eval_transform(
    image_size: int,
    resize: Literal["shortest_center", "squash"] = "shortest_center",
    crop: int = 0,
    num_crops: int = 1,
) -> v2.Compose:
    """Return a fixed view of a clip, uint8 [T, 3, H, W] -> uint8 [T, 3, S, S].

    `shortest_center` resizes the shorter side to S and takes the center. With several crops, it takes square number
    `crop` of `num_crops`, spread evenly along the longer side. `squash` resizes both sides to S.
    """
    if not 0 <= crop < num_crops:
        raise InputError(f"crop is {crop} of num_crops {num_crops}; expected 0 <= crop < num_crops")
    bicubic = v2.InterpolationMode.BICUBIC
    if resize == "squash":
        if num_crops != 1:
            raise InputError(f"squash shows the whole frame: num_crops is {num_crops}, expected 1")
        return v2.Compose([v2.Resize((image_size, image_size), interpolation=bicubic, antialias=True)])
    if resize != "shortest_center":
        raise InputError(f"resize is {resize!r}; expected 'shortest_center' or 'squash'")
    cut = v2.CenterCrop(image_size) if num_crops == 1 else _SideCrop(image_size, crop, num_crops)
    return v2.Compose([v2.Resize(image_size, interpolation=bicubic, antialias=True), cut])


def eval_transforms(
    image_size: int, resize: Literal["shortest_center", "squash"] = "shortest_center", num_crops: int = 1
) -> list[v2.Compose]:
    """Return one `eval_transform` for each of `num_crops` crops."""
    return [eval_transform(image_size, resize, crop, num_crops) for crop in range(num_crops)]


def apply_keyed(transform: Transform, clip: Tensor, generator: torch.Generator) -> Tensor:
    """Apply a transform that draws from torch's global CPU state, with draws from `generator` instead.

    The global state is restored afterwards, and the state of other devices is not touched.
    """
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return transform(clip)


def mix(
    frames: Tensor, targets: Tensor, mixup_alpha: float, cutmix_alpha: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mix a batch of clips by MixUp (https://arxiv.org/abs/1710.09412) or CutMix (https://arxiv.org/abs/1905.04899).

    torchvision draws one ratio for the whole batch from Beta(alpha, alpha) and mixes each clip with its neighbor. The
    batch is shuffled first, since clips of the same video are neighbors under repeated sampling. With both alphas above
    0, each kind is used half of the time; with both 0, nothing is mixed.

    Args:
        frames: Floating point [B, T, 3, H, W], on any device.
        targets: Floating point [B, K], rows that sum to 1.
        mixup_alpha: Alpha of MixUp, or 0.
        cutmix_alpha: Alpha of CutMix, or 0.
        generator: CPU generator, e.g. keyed by (seed, epoch, step).

    Returns:
        Mixed frames and targets in the shuffled order, of the same shapes and types. The inputs are not changed.
    """
    if frames.ndim != 5 or not frames.is_floating_point():
        raise InputError(f"frames are {frames.dtype} {list(frames.shape)}; expected floating point [B, T, 3, H, W]")
    if targets.ndim != 2 or not targets.is_floating_point() or len(targets) != len(frames):
        raise InputError(f"targets are {targets.dtype} {list(targets.shape)}; expected floats [{len(frames)}, K]")
    if mixup_alpha < 0 or cutmix_alpha < 0:
        raise InputError(f"mixup_alpha {mixup_alpha} and cutmix_alpha {cutmix_alpha} must not be negative")
    if mixup_alpha == 0 and cutmix_alpha == 0:
        return frames, targets
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator of the CPU
        torch.default_generator.manual_seed(int(torch.randint(2**63 - 1, (), generator=generator)))
        order = torch.randperm(len(frames))
        cut = cutmix_alpha > 0 and (mixup_alpha == 0 or bool(torch.rand(()) < 0.5))
        kind = v2.CutMix(alpha=cutmix_alpha) if cut else v2.MixUp(alpha=mixup_alpha)
        clips = tv_tensors.Video(frames[order.to(frames.device)])
        mixed, soft = kind(clips, targets[order.to(targets.device)])
    return mixed.as_subclass(Tensor), soft


class _SideCrop(nn.Module):
    """Crop number `crop` of several squares spread evenly along the longer side."""

    def __init__(self, size: int, crop: int, num_crops: int) -> None:
        super().__init__()
        self.size, self.crop, self.num_crops = size, crop, num_crops

    def forward(self, clip: Tensor) -> Tensor:
        """Crop a clip [T, 3, H, W]."""
        height, width = clip.shape[-2:]
        top, left = ((side - self.size) * self.crop // (self.num_crops - 1) for side in (height, width))
        return F.crop(clip, top, left, self.size, self.size)
