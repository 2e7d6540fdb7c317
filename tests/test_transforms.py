import pytest
import torch
from torch.nn import functional as F

from clipvid.data import transforms
from clipvid.data.sampling import keyed_generator
from clipvid.data.transforms import apply_keyed, eval_transform, eval_transforms, mix, train_transform

EVERYTHING = {"rand_augment": 9, "color_jitter": 0.4, "grayscale": 0.3, "random_erasing": 0.5}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return noise of half the contrast, so that interpolation stays within the range of a byte."""
    return torch.randint(64, 192, shape, generator=keyed_generator(seed), dtype=torch.uint8)


def still_clip(num_frames: int = 4, height: int = 40, width: int = 60) -> torch.Tensor:
    return noise(1, 3, height, width).expand(num_frames, -1, -1, -1).contiguous()


@pytest.mark.parametrize("seed", range(8))
def test_training_augments_all_frames_alike(seed: int):
    clip = apply_keyed(train_transform(32, **EVERYTHING), still_clip(), keyed_generator(seed))
    assert clip.shape == (4, 3, 32, 32)
    assert clip.dtype == torch.uint8
    assert all(torch.equal(frame, clip[0]) for frame in clip)


@pytest.mark.parametrize(
    ("options", "probability"),
    [({"grayscale": 0.3}, 0.3), ({"random_erasing": 0.4}, 0.4), ({"color_jitter": 0.4}, 1.0)],
)
def test_augmentation_probabilities(options: dict, probability: float):
    """Without the crop (the whole of a square frame of the final size), all differences come from the option."""
    clip = still_clip(1, 32, 32)
    crop_off = {"scale": (1.0, 1.0)}
    plain, optional = train_transform(32, **crop_off), train_transform(32, **crop_off, **options)
    for transform in (plain, optional):
        transform.transforms[0].ratio = (1.0, 1.0)
    assert torch.equal(apply_keyed(plain, clip, keyed_generator(0)), clip)
    changed = [not torch.equal(apply_keyed(optional, clip, keyed_generator(seed)), clip) for seed in range(200)]
    assert sum(changed) / 200 == pytest.approx(probability, abs=0.1)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_color_jitter_has_a_probability_per_clip(probability: float):
    clip = still_clip(3, 32, 32)
    options = {"scale": (1.0, 1.0), "color_jitter": (0.4, 0.4, 0.2, 0.1), "color_jitter_probability": probability}
    transform = train_transform(32, **options)
    transform.transforms[0].ratio = (1.0, 1.0)
    changed = [not torch.equal(apply_keyed(transform, clip, keyed_generator(seed)), clip) for seed in range(100)]
    assert sum(changed) / 100 == pytest.approx(probability, abs=0.15)


def test_colors_per_frame_differ_between_frames_and_stay_keyed():
    """The rectangle stays in the same place of all frames."""
    clip = still_clip(4, 32, 32)
    per_frame = train_transform(32, color_jitter=0.4, per_frame=True, random_erasing=1.0)
    shown = apply_keyed(per_frame, clip, keyed_generator(3))
    assert torch.equal(apply_keyed(per_frame, clip, keyed_generator(3)), shown)
    assert not torch.equal(shown[0], shown[1])
    black = (shown == 0).all(dim=1)
    assert black[0].any()
    assert (black == black[:1]).all()
    together = apply_keyed(train_transform(32, color_jitter=0.4), clip, keyed_generator(3))
    assert all(torch.equal(frame, together[0]) for frame in together)


def test_strength_of_one_number_is_that_of_four():
    one, four = (train_transform(32, color_jitter=strength) for strength in (0.4, (0.4, 0.4, 0.4, 0.1)))
    for seed in range(5):
        clips = [apply_keyed(transform, still_clip(), keyed_generator(seed)) for transform in (one, four)]
        assert torch.equal(*clips)


def test_erased_rectangle_has_the_color():
    transform = train_transform(32, random_erasing=1.0, erase_color=(124, 116, 104))
    clip = apply_keyed(transform, torch.zeros(2, 3, 40, 40, dtype=torch.uint8), keyed_generator(0))
    assert {tuple(pixel) for pixel in clip.permute(0, 2, 3, 1).flatten(0, 2).tolist()} == {(0, 0, 0), (124, 116, 104)}


@pytest.mark.parametrize(("rows", "columns"), [(96, 160), (160, 96), (100, 100), (97, 131)])
def test_multi_scale_crop_takes_fixed_shares_and_places(rows: int, columns: int, monkeypatch):
    """Boxes are compared with all that the definition allows, listed one by one."""
    boxes = set()

    def record(clip, top, left, height, width, size, *args, **options):
        boxes.add((top, left, height, width))
        return clip[..., : size[0], : size[1]]

    monkeypatch.setattr(transforms.F, "resized_crop", record)
    crop = transforms.MultiScaleCrop(32)
    for seed in range(600):
        apply_keyed(crop, torch.zeros(1, 3, rows, columns, dtype=torch.uint8), keyed_generator(seed))
    shares, short = [1, 0.875, 0.75, 0.66], min(rows, columns)
    allowed = set()
    for i, tall in enumerate(shares):
        for j, wide in enumerate(shares):
            if abs(i - j) <= 1:
                height, width = int(short * tall), int(short * wide)
                down, right = (rows - height) // 4, (columns - width) // 4
                for y, x in ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2)):
                    allowed.add((y * down, x * right, height, width))
    assert boxes == allowed


def test_multi_scale_crop_shows_the_same_part_of_every_frame():
    clip = apply_keyed(train_transform(32, crop="multi_scale"), still_clip(4, 60, 90), keyed_generator(1))
    assert clip.shape == (4, 3, 32, 32)
    assert clip.dtype == torch.uint8
    assert all(torch.equal(frame, clip[0]) for frame in clip)


def test_keyed_augmentation_keeps_global_state():
    transform, clip = train_transform(24, **EVERYTHING), noise(3, 3, 40, 50)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = apply_keyed(transform, clip, keyed_generator(5, 0, 7))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(apply_keyed(transform, clip, keyed_generator(5, 0, 7)), first)
    assert not torch.equal(apply_keyed(transform, clip, keyed_generator(5, 1, 7)), first)
    generator = keyed_generator(5, 0, 7)
    apply_keyed(transform, clip, generator)
    assert not torch.equal(apply_keyed(transform, clip, generator), first)


@pytest.mark.parametrize(("height", "width"), [(48, 90), (90, 48), (64, 64), (20, 33), (32, 32)])
def test_evaluation_views(height: int, width: int):
    clip = noise(2, 3, height, width)
    size = [32 if side == min(height, width) else int(32 * side / min(height, width)) for side in (height, width)]
    resized = F.interpolate(clip.float(), size=size, mode="bicubic", antialias=True).round().clamp(0, 255)
    for num_crops in (1, 3):
        for crop, transform in enumerate(eval_transforms(32, num_crops=num_crops)):
            view = transform(clip)
            assert view.shape == (2, 3, 32, 32)
            assert view.dtype == torch.uint8
            share = 0.5 if num_crops == 1 else crop / 2
            top, left = (int((side - 32) * share) for side in size)
            near = [
                (view.float() - resized[..., top + dy : top + dy + 32, left + dx : left + dx + 32]).abs().max()
                for dy in (0, 1)
                for dx in (0, 1)
                if top + dy + 32 <= size[0] and left + dx + 32 <= size[1]
            ]
            assert min(near) <= 2


def test_squash_keeps_the_whole_frame():
    clip = noise(2, 3, 48, 90)
    expected = F.interpolate(clip.float(), size=(32, 32), mode="bicubic", antialias=True).round().clamp(0, 255)
    assert (eval_transform(32, "squash")(clip).float() - expected).abs().max() <= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resize": "stretch"}, "'stretch'"),
        ({"crop": 3, "num_crops": 3}, "crop is 3"),
        ({"resize": "squash", "num_crops": 3}, "squash"),
    ],
)
def test_impossible_views_are_refused(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        eval_transform(32, **arguments)


def batch(size: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Return clips filled with their number, one class each, so that pixels determine the targets."""
    frames = torch.arange(size, dtype=torch.float32).view(size, 1, 1, 1, 1).expand(size, 2, 3, 16, 20).contiguous()
    return frames, torch.eye(size)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("mixup_alpha", "cutmix_alpha"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixed_targets_match_pixels(seed: int, mixup_alpha: float, cutmix_alpha: float):
    frames, targets = batch()
    mixed, soft = mix(frames, targets, mixup_alpha, cutmix_alpha, keyed_generator(seed))
    assert mixed.shape == frames.shape
    assert torch.allclose(soft.sum(1), torch.ones(6))
    numbers = torch.arange(6, dtype=torch.float32)
    assert torch.allclose(mixed.mean((1, 2, 3, 4)), soft @ numbers, atol=1e-4)
    assert torch.equal(mixed, mixed[:, :1, :1].expand_as(mixed))
    unchanged, hard = batch()
    assert torch.equal(frames, unchanged)
    assert torch.equal(targets, hard)


def test_each_kind_of_mixing_is_used():
    frames, targets = batch()

    def is_cut(seed: int, mixup_alpha: float, cutmix_alpha: float) -> bool:
        mixed, _ = mix(frames, targets, mixup_alpha, cutmix_alpha, keyed_generator(seed))
        return bool((mixed == mixed.round()).all())

    assert not any(is_cut(seed, 1.0, 0.0) for seed in range(20))
    assert all(is_cut(seed, 0.0, 1.0) for seed in range(20))
    assert 5 < sum(is_cut(seed, 1.0, 1.0) for seed in range(40)) < 35


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_equals_a_readable_reference(seed: int, kind: str):
    """The reference mixes each clip of the shuffled batch with the one before it, by the ratio of the targets."""
    generator = torch.Generator().manual_seed(seed)
    frames, targets = torch.randn(5, 2, 3, 16, 20, generator=generator), torch.eye(5)
    mixed, soft = mix(frames, targets, *((0.8, 0.0) if kind == "mixup" else (0.0, 1.0)), keyed_generator(seed))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**63 - 1, (), generator=keyed_generator(seed))))
        order = torch.randperm(5)
    ratio = soft[0, order[0]]
    for place in range(5):
        own, other = order[place], order[place - 1]
        torch.testing.assert_close(soft[place], ratio * targets[own] + (1 - ratio) * targets[other])
        if kind == "mixup":
            torch.testing.assert_close(mixed[place], ratio * frames[own] + (1 - ratio) * frames[other])
        else:
            pasted = (mixed[place] != frames[own]).any(dim=(0, 1))
            assert torch.equal(mixed[place], torch.where(pasted, frames[other], frames[own]))
            assert pasted.sum() == pasted.any(0).sum() * pasted.any(1).sum()
            torch.testing.assert_close(1 - pasted.float().mean(), ratio)


def test_mixing_leaves_the_global_generator_alone():
    frames, targets = batch()
    before = torch.get_rng_state()
    mix(frames, targets, 0.8, 1.0, keyed_generator(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_mixing_is_keyed_and_can_be_off():
    frames, targets = batch()
    first, second, other = (mix(frames, targets, 0.8, 1.0, keyed_generator(seed)) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], other[0])
    off = mix(frames, targets, 0.0, 0.0, keyed_generator(3))
    assert torch.equal(off[0], frames)
    assert torch.equal(off[1], targets)


def test_wrong_batches_are_refused():
    frames, targets = batch()
    with pytest.raises(ValueError, match=r"uint8.*expected floating point"):
        mix(frames.byte(), targets, 1.0, 0.0, keyed_generator(0))
    with pytest.raises(ValueError, match="expected floating point"):
        mix(frames[0], targets, 1.0, 0.0, keyed_generator(0))
    with pytest.raises(ValueError, match="expected floats"):
        mix(frames, targets.argmax(1), 1.0, 0.0, keyed_generator(0))
    with pytest.raises(ValueError, match="negative"):
        mix(frames, targets, -1.0, 0.0, keyed_generator(0))
