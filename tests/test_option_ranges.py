"""Invalid options, each refused by name when a config is built."""

import math

import pytest

from clipvid.data.config import AugmentConfig, DataConfig
from clipvid.training.config import FinetuneConfig, TrainingConfig
from clipvid.training.optim import OptimConfig, ParameterGroup
from clipvid.training.pretrain_config import PretrainClipConfig, PretrainConfig

NAN, INF = math.nan, math.inf
WRONG = [
    (OptimConfig, "lr", (-1.0, NAN, INF)),
    (OptimConfig, "weight_decay", (-0.1, NAN, INF)),
    (OptimConfig, "eps", (-1e-8, NAN)),
    (OptimConfig, "min_lr", (-1e-8, 1.0, NAN)),
    (OptimConfig, "warmup_ratio", (-0.1, 1.1, 5.0, NAN)),
    (OptimConfig, "betas", ((1.0, 0.9), (0.9, NAN), (-0.1, 0.9))),
    (TrainingConfig, "mixup", (-1.0, NAN, INF)),
    (TrainingConfig, "cutmix", (-1.0, NAN, INF)),
    (TrainingConfig, "label_smoothing", (-1.0, 1.5, NAN)),
    (TrainingConfig, "save_steps", (-1,)),
    (TrainingConfig, "max_grad_norm", (0.0, -1.0, NAN)),
    (TrainingConfig, "ema_decay", (-0.1, 1.0, NAN)),
    (TrainingConfig, "per_device_train_batch_size", (0, -1)),
    (TrainingConfig, "per_device_eval_batch_size", (0, -1)),
    (TrainingConfig, "gradient_accumulation_steps", (0, -1)),
    (TrainingConfig, "ddp_timeout", (0, -1)),
    (AugmentConfig, "scale", ((0.0, 1.0), (0.9, 0.5), (0.5, 1.5), (NAN, 1.0))),
    (AugmentConfig, "rand_augment", (-1, 99)),
    (AugmentConfig, "color_jitter", (-1.0, 2.0, NAN, (0.1, 0.1, 0.1, 0.6), (0.1, -0.1, 0.1, 0.1))),
    (AugmentConfig, "color_jitter_probability", (-0.1, 1.1, NAN)),
    (AugmentConfig, "erase_color", ((0, 0, 256), (-1, 0, 0))),
    (AugmentConfig, "crop", ("center",)),
    (AugmentConfig, "grayscale", (-0.1, 1.1, NAN)),
    (AugmentConfig, "random_erasing", (-0.1, 1.1, NAN)),
    (DataConfig, "max_bad_fraction", (-0.1, 1.1, NAN)),
    (DataConfig, "num_workers", (-1,)),
    (DataConfig, "stride", (0, -2)),
    (DataConfig, "repeats", (0,)),
    (DataConfig, "test_clips", (0,)),
    (DataConfig, "test_crops", (0,)),
    (DataConfig, "test_sampling", ("uniform",)),
]


@pytest.mark.parametrize(
    ("config", "option", "value"), [(config, name, value) for config, name, values in WRONG for value in values]
)
def test_value_out_of_range_is_refused_by_name(config, option, value):
    with pytest.raises(ValueError, match=rf"{option}="):
        config(**{option: value})


@pytest.mark.parametrize(
    ("options", "owner"),
    [
        ({"per_frame": True}, "color_jitter"),
        ({"color_jitter_probability": 0.5}, "color_jitter"),
        ({"erase_color": (1, 2, 3)}, "random_erasing"),
    ],
)
def test_augmentation_without_its_owner_is_refused(options, owner):
    with pytest.raises(ValueError, match=f"data.augment.{next(iter(options))} has no effect without {owner}"):
        AugmentConfig(**options)


def test_scale_of_a_multi_scale_crop_is_refused():
    with pytest.raises(ValueError, match="scale is the share of crop: area; leave it out"):
        AugmentConfig(crop="multi_scale", scale=(0.5, 1.0))


@pytest.mark.parametrize(("lr", "weight_decay"), [(-1.0, 0.0), (NAN, 0.0), (0.1, -1.0), (0.1, INF)])
def test_group_out_of_range_is_refused(lr, weight_decay):
    with pytest.raises(ValueError, match=r"optim\.groups\.(lr|weight_decay)="):
        ParameterGroup("head.*", lr, weight_decay)


@pytest.mark.parametrize("config", [FinetuneConfig, PretrainConfig, PretrainClipConfig])
@pytest.mark.parametrize("folder", ["", "  "])
def test_empty_output_dir_is_refused(config, folder):
    with pytest.raises(ValueError, match="output_dir="):
        config(output_dir=folder)
