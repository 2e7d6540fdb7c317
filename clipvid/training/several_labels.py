"""Training on several labels per video: settings that follow from the list, and the first bias of the logits.

Shapes: V videos, K classes.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from accelerate import Accelerator

from clipvid import InputError
from clipvid.data.manifest import Manifest
from clipvid.data.splits import eval_loader
from clipvid.evaluation.loop import predict_views
from clipvid.model.video_clip import VideoCLIP
from clipvid.training.config import METRIC_OF_SEVERAL, FinetuneConfig
from clipvid.training.state import LoopSettings

_VIDEOS = 64  # that the first bias is measured on, at most
_LEAST = 0.01


def for_list(config: FinetuneConfig, videos: Manifest) -> FinetuneConfig:
    """Return the config with the settings that follow from the number of labels per video.

    These are `model.multi_label`, and for several labels the default of `training.metric_for_best_model`.

    Raises:
        InputError: A setting does not fit the list.
    """
    is_several, chosen = videos.is_multi_label, config.model.multi_label
    metric = config.training.metric_for_best_model
    if chosen is not None and chosen != is_several:
        column, other = ("labels", "label") if is_several else ("label", "labels")
        raise InputError(
            f"model.multi_label={chosen}, but data.train has the column {column}; leave the option out, or write a "
            f"list with the column {other}"
        )
    model = replace(config.model, multi_label=True if is_several else None)
    if not is_several:
        if metric == METRIC_OF_SEVERAL:
            raise InputError(
                f"training.metric_for_best_model={metric}: it is measured for several labels per video, but data.train "
                "has one; expected val_top1"
            )
        return replace(config, model=model)
    if config.data.balance:
        raise InputError(
            "data.balance shows every class equally often, which videos with several labels do not allow; use "
            "training.class_weights: balanced"
        )
    if config.training.diagnose:
        raise InputError("training.diagnose measures top-1, which several labels per video do not have; disable it")
    metric = METRIC_OF_SEVERAL if metric == LoopSettings.metric_for_best_model else metric
    return replace(config, model=model, training=replace(config.training, metric_for_best_model=metric))


def set_first_bias(model: VideoCLIP, config: FinetuneConfig, videos: Manifest, accelerator: Accelerator) -> None:
    """Set the bias of the logits so that their mean over some videos gives the share of labels in the list.

    CLIP's logits are all far above zero, where every class is certain and the loss is large. A bias that comes from
    another model, or that is not used, stays.
    """
    if model.label_bias is None or model.label_bias.item() != 0:
        return
    count = len(videos)
    chosen = sorted({place * count // min(count, _VIDEOS) for place in range(min(count, _VIDEOS))})
    shown = videos.subset(chosen)
    data = replace(config.data, test_clips=1, test_crops=1)
    loader = eval_loader(data, model, shown, accelerator, config.training.per_device_eval_batch_size)
    views = predict_views(accelerator, model, loader)
    if not views.readable.any():
        return  # training reports them
    share = sum(len(sample.labels or ()) for sample in videos.samples) / (count * len(videos.classes))
    share = min(max(share, _LEAST), 1 - _LEAST)
    with torch.no_grad():
        model.label_bias.fill_(math.log(share / (1 - share)) - float(views.logits[views.readable].mean()))
