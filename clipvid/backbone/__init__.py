"""CLIP towers through open_clip, which only this package imports.

A tower is split into the parts of a video encoder: patch embedding, blocks in two halves (attention and MLP), and the
pooling head. The residual stream between the halves is exposed. Fused attention is replaced once by q, k, v and out
linears around `scaled_dot_product_attention`. State dicts convert both ways.

Shapes: M images, P prefix tokens, N = H x W patches, D width, E embedding, K texts, L text length.
"""

from clipvid.backbone.loading import RANDOM, TINY, build_backbone, hub_repository, is_weight_tag, load_backbone
from clipvid.backbone.parts import BACKBONE_FILES, Backbone
from clipvid.backbone.timm_towers import TimmBlock
from clipvid.backbone.towers import NO_TEXT, Block, TextTower

__all__ = [
    "BACKBONE_FILES",
    "NO_TEXT",
    "RANDOM",
    "TINY",
    "Backbone",
    "Block",
    "TextTower",
    "TimmBlock",
    "build_backbone",
    "hub_repository",
    "is_weight_tag",
    "load_backbone",
]
