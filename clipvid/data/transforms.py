"""Augmentation and resizing of clips, uint8 [T, 3, H, W] in and out, the same for every frame unless `per_frame`.

Pixels are normalized later: bytes are copied to the device and become floats there.
"""

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from clipvid import InputError

Transform: TypeAlias = Callable[[Tensor], Tensor]
Resize: TypeAlias = Literal["shortest_center", "squash", "bilinear_center"]


def train_transform(
    image_size: int,
    *,
    crop: Literal["area", "multi_scale"] = "area",
    scale: tuple[float, float] = (0.5, 1.0),
    rand_augment: int = 0,
    color_jitter: float | Sequence[float] = 0.0,
    color_jitter_probability: float = 1.0,
    per_frame: bool = False,
    grayscale: float = 0.0,
    random_erasing: float = 0.0,
    erase_color: Sequence[int] = (0, 0, 0),
) -> v2.Compose:
    """Return random augmentation, uint8 [T, 3, H, W] -> uint8 [T, 3, S, S]. Apply it with `apply_keyed`.

    Args:
        image_size: Side S in pixels.
        crop: `area` for a random share of the area, or `multi_scale` for `MultiScaleCrop`.
        scale: Minimum and maximum share of the area that the crop `area` takes.
        rand_augment: Magnitude, 1 to 30, of two random operations (https://arxiv.org/abs/1909.13719), or 0 for none.
        color_jitter: Strength of brightness, contrast and saturation changes. Hue changes by a quarter of it. A
            sequence has the four strengths.
        color_jitter_probability: Probability of changing the colors of a clip.
        per_frame: Draw the change of colors for each frame.
        grayscale: Probability of converting to grayscale.
        random_erasing: Probability of one rectangle, in the same place in all frames.
        erase_color: Red, green and blue of the rectangle, 0 to 255.
    """
    area = v2.RandomResizedCrop(image_size, scale=scale, interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
    steps: list[nn.Module] = [area if crop == "area" else MultiScaleCrop(image_size)]
    if rand_augment > 0:
        steps.append(v2.RandAugment(2, rand_augment, interpolation=v2.InterpolationMode.BILINEAR))
    strengths = [color_jitter] * 3 + [color_jitter / 4] if isinstance(color_jitter, int | float) else color_jitter
    if any(strengths):
        colors: nn.Module = v2.ColorJitter(*strengths)
        colors = PerFrame(colors) if per_frame else colors
        steps.append(v2.RandomApply([colors], color_jitter_probability) if color_jitter_probability < 1 else colors)
    if grayscale > 0:
        steps.append(v2.RandomGrayscale(grayscale))
    if random_erasing > 0:
        steps.append(v2.RandomErasing(random_erasing, value=[float(value) for value in erase_color]))
    return v2.Compose(steps)


def eval_transform(
    image_size: int,
    resize: Resize = "shortest_center",
    crop: int = 0,
    num_crops: int = 1,
) -> v2.Compose:
    """Return a fixed view of a clip, uint8 [T, 3, H, W] -> uint8 [T, 3, S, S].

    `shortest_center` resizes the shorter side to S and takes the center. With several crops, it takes square number
    `crop` of `num_crops`, spread evenly along the longer side. `squash` resizes both sides to S. These use bicubic
    interpolation. `bilinear_center` is `shortest_center` with bilinear interpolation and the offset of the center
    rounded down, as in transformers' image processors.
    """
    if not 0 <= crop < num_crops:
        raise InputError(f"crop is {crop} of num_crops {num_crops}; expected 0 <= crop < num_crops")
    bicubic = v2.InterpolationMode.BICUBIC
    if resize == "squash":
        if num_crops != 1:
            raise InputError(f"squash shows the whole frame: num_crops is {num_crops}, expected 1")
        return v2.Compose([v2.Resize((image_size, image_size), interpolation=bicubic, antialias=True)])
    if resize not in get_args(Resize):
        raise InputError(f"resize is {resize!r}; expected {', '.join(map(repr, get_args(Resize)))}")
    is_bilinear = resize == "bilinear_center"
    cut: nn.Module = _SideCrop(image_size, 1, 3) if is_bilinear else v2.CenterCrop(image_size)
    if num_crops > 1:
        cut = _SideCrop(image_size, crop, num_crops)
    mode = v2.InterpolationMode.BILINEAR if is_bilinear else bicubic
    return v2.Compose([v2.Resize(image_size, interpolation=mode, antialias=True), cut])


def eval_transforms(image_size: int, resize: Resize = "shortest_center", num_crops: int = 1) -> list[v2.Compose]:
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


class MultiScaleCrop(nn.Module):
    """Random crop of fixed shares of the short side, at a corner or the center, resized to a square.

    Height and width take each one of `SHARES`, at most one step apart. All combinations and places are equally likely.
    See Wang et al., https://arxiv.org/abs/1507.02159.
    """

    SHARES = (1.0, 0.875, 0.75, 0.66)
    PLACES = ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2))  # quarters of the free rows and columns

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, clip: Tensor) -> Tensor:
        """Crop a clip [T, 3, H, W] to [T, 3, S, S]."""
        rows, columns = clip.shape[-2:]
        sides = [int(min(rows, columns) * share) for share in self.SHARES]
        pairs = [(i, j) for i in range(len(sides)) for j in range(len(sides)) if abs(i - j) <= 1]
        tall, wide = (sides[index] for index in pairs[int(torch.randint(len(pairs), ()))])
        down, right = self.PLACES[int(torch.randint(len(self.PLACES), ()))]
        top, left = (rows - tall) // 4 * down, (columns - wide) // 4 * right
        bilinear = v2.InterpolationMode.BILINEAR
        return F.resized_crop(clip, top, left, tall, wide, [self.size, self.size], bilinear, antialias=True)


class PerFrame(nn.Module):
    """Random transform that is drawn for each frame of a clip."""

    def __init__(self, transform: nn.Module) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, clip: Tensor) -> Tensor:
        """Transform the frames of a clip [T, 3, H, W] one by one."""
        return torch.stack([self.transform(frame) for frame in clip])


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
