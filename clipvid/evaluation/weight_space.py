"""Weight-space ensembling (WiSE-FT), and the zero-shot counterpart of a fine-tuned model.

WiSE-FT (https://arxiv.org/abs/2109.01903) uses weights `(1 - alpha) * zero_shot + alpha * fine_tuned`. Alpha 0 is the
zero-shot model, alpha 1 the fine-tuned one. Other publications define the ratio in the opposite direction.

Shapes: K classes, E embedding, S image side.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clipvid import InputError
from clipvid.backbone import Backbone, load_backbone
from clipvid.backbone.state_dicts import hash_tensors, load_strictly
from clipvid.model.factory import assemble_model
from clipvid.model.prompts import read_descriptions
from clipvid.model.video_clip import VideoCLIP

_ROWS = 512  # classes that are compared with all others at once


def zero_shot_model(model: VideoCLIP) -> VideoCLIP:
    """Build the plain CLIP of a model, with the same class names: mean over frames, nothing trained.

    Its pixels are normalized as CLIP's are, whatever `pixel_mean` and `pixel_std` of the model are.

    Raises:
        InputError: See `base_backbone`.
        RunError: See `base_backbone`.
    """
    parts: dict[str, Any] = {"adapter": "none", "pooling": "mean", "head": "text", "tune": ["head"]}
    parts["multi_label"] = None
    config = dataclasses.replace(model.config, **parts, pixel_mean=None, pixel_std=None)
    plain = assemble_model(base_backbone(model), config).eval().to(model.pixel_mean.device)
    if model.labels:
        plain.set_labels(model.labels, model.templates)
    return plain


def base_backbone(model: VideoCLIP) -> Backbone:
    """Return the CLIP that a model was made from: in memory if the model keeps it frozen, otherwise loaded by name.

    Raises:
        InputError: The name now refers to other weights.
        RunError: The weights cannot be loaded.
    """
    if model.has_base_backbone:
        return model.backbone
    config, expected = model.config, model.base_fingerprint()
    backbone = load_backbone(config.backbone, config.pretrained, config.image_size)
    fingerprint = backbone.fingerprint()
    if fingerprint != expected:
        raise InputError(
            f"the CLIP that the model was made from cannot be loaded again: {config.backbone} "
            f"(pretrained={config.pretrained}) has weights with SHA-256 {fingerprint[:12]}..., the model started from "
            f"{expected[:12]}... Random weights are different each time, and files may have changed"
        )
    return backbone


class WeightSpace:
    """Line of models from zero-shot (alpha 0) to fine-tuned (alpha 1). `at` moves the model along it in place.

    Weights with a known initial value (CLIP's weights, projections that start at zero) are interpolated from it.
    Weights with a random initial value have no zero-shot value and stay as trained; zeros hide them at alpha 0. Buffers
    stay, too. The weights are frozen, since torch uses other attention kernels with gradients, which changes the last
    digits.

    Raises:
        InputError: The model has no zero-shot state: a linear head, or parts that are not the identity when they are
            new (MIT pooling, video-specific prompts, context tokens, temporal shift, X-CLIP).
    """

    def __init__(self, model: VideoCLIP) -> None:
        if not model.head.needs_text:
            raise InputError(
                "weight-space ensembling needs a zero-shot model, which a linear head does not have; use head=text"
            )
        if model.config.multi_label:
            raise InputError(
                "weight-space ensembling needs a zero-shot model whose probabilities mean the same, but zero-shot CLIP "
                "has none for several labels per video; leave out alpha and sweep"
            )
        self.model = model.requires_grad_(False)
        self.end = {name: tensor.detach().clone() for name, tensor in model.trained_state().items()}
        base = base_backbone(model)
        first, second = (self._fresh(seed, base) for seed in (0, 1))
        trained = {name for name, _ in model.named_parameters(remove_duplicate=False) if name in self.end}
        unmoved = {name for name in trained if torch.equal(first[name], second[name])}
        self.start = {name: first[name] if name in unmoved else tensor for name, tensor in self.end.items()}
        self._check()

    def at(self, alpha: float) -> VideoCLIP:
        """Return the model at `alpha`. Alpha 0 and 1 give bitwise the zero-shot and the fine-tuned model.

        The pixel statistics are always those of the model.

        With LoRA in the text tower, alpha 0 is equal within 1e-5.
        """
        if not 0 <= alpha <= 1:
            raise InputError(f"alpha={alpha}: expected 0 (zero-shot) to 1 (fine-tuned)")
        weights = {
            name: torch.lerp(self.start[name], end, alpha) if end.is_floating_point() else end
            for name, end in self.end.items()
        }
        load_strictly(self.model.trained_state(), weights)
        self.model.set_labels(self.model.labels, self.model.templates)
        return self.model

    def _fresh(self, seed: int, base: Backbone) -> dict[str, Tensor]:
        """Return the weights of the model before training, with random ones drawn from `seed`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = assemble_model(base, self.model.config, self.model.head.num_classes)
            fresh = fresh.to(self.model.pixel_mean.device)
        return {name: tensor.detach() for name, tensor in fresh.trained_state().items()}

    @torch.no_grad()
    def _check(self) -> None:
        """Check on a clip of noise that alpha 0 is zero-shot."""
        height, width = self.model.backbone.vision.image_shape
        generator = torch.Generator().manual_seed(0)
        clip = torch.randint(256, (1, self.model.num_frames, 3, height, width), dtype=torch.uint8, generator=generator)
        clip = self.model.normalize(clip.to(self.model.pixel_mean.device))
        expected = zero_shot_model(self.model)(clip, normalized=True).logits
        logits = self.at(0)(clip, normalized=True).logits
        self.at(1)
        # LoRA in the text tower uses another attention kernel, which changes the last digits.
        if not torch.allclose(logits, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max())):
            apart = float((logits - expected).abs().max())
            raise InputError(
                "weight-space ensembling needs a model that equals zero-shot CLIP before training, but its "
                f"logits differ by up to {apart:.3g}: MIT pooling, video-specific prompts, context tokens "
                "(`coop`) and the adapters `shift` and `xclip` change a model from the start"
            )


@torch.no_grad()
def set_descriptions(model: VideoCLIP, names: Sequence[str], file: str) -> None:
    """Replace the names of K classes by descriptions from a JSON file (`prompts.read_descriptions`).

    Each description is inserted into each template. A class is the mean direction of its descriptions, at their mean
    length. The weights are frozen afterwards.
    """
    if not model.head.needs_text:
        raise InputError(f"descriptions={file}: a linear head uses no text")
    texts, templates = read_descriptions(file, names), model.templates
    model.set_labels([text for group in texts for text in group], templates)
    assert model.label_features is not None
    groups = model.label_features.split([len(group) for group in texts])
    model.label_features = torch.stack([_mean_direction(group) for group in groups])
    model.labels = list(names)
    model.requires_grad_(False)


def _mean_direction(features: Tensor) -> Tensor:
    """Return the mean direction [E] of features [n, E], at their mean length. A single feature is returned bitwise."""
    if len(features) == 1:
        return features[0]
    return F.normalize(F.normalize(features, dim=-1).mean(dim=0), dim=-1) * features.norm(dim=-1).mean()


@torch.no_grad()
def check_texts_differ(model: VideoCLIP) -> None:
    """Raise InputError if two classes have the same text features, so that no score can distinguish them."""
    if not model.head.needs_text or model.label_features is None:
        return
    directions = F.normalize(model.label_features.float(), dim=-1)
    count, shown = 0, list[tuple[str, str]]()
    for start in range(0, len(directions), _ROWS):  # in parts, since all pairs of 21,000 classes take gigabytes
        rows = directions[start : start + _ROWS] @ directions[start:].T
        same = (rows > 1 - 1e-6).triu(diagonal=1).nonzero()
        count += len(same)
        shown += [(model.labels[start + i], model.labels[start + j]) for i, j in same[: 3 - len(shown)].tolist()]
    if count:
        raise InputError(
            f"{count} pairs of classes have the same text features, such as {shown}: rename them "
            "in the class list, or add --descriptions"
        )


def model_key(model: VideoCLIP) -> str:
    """Return the SHA-256 of everything that determines a model's output: config, class names, texts, weights."""
    names = [dataclasses.asdict(model.config), model.labels, model.templates]
    digest = hashlib.sha256(json.dumps(names, sort_keys=True, default=str).encode())
    tensors = dict(model.state_dict())
    if model.label_tokens is not None:
        tensors["label_tokens"] = model.label_tokens
    hash_tensors(digest, sorted(tensors.items()))
    return digest.hexdigest()
