"""ATA, Alignment-guided Temporal Attention (Zhao et al., NeurIPS 2022, https://arxiv.org/abs/2210.00132).

Patches of neighbouring frames are matched one to one by similarity, and attention over time runs along the tubes that
the matches form, before the block's spatial attention.
[abstract] parameter-free alignment of the patches of neighbouring frames, extending one-dimensional temporal attention,
for any image backbone. [construction] everything else: cosine similarity, Kuhn-Munkres per pair of frames, the matches
composed along time, and around them the block of `temporal_attention.py`, which says where its embedding stands.

Shapes: B clips, T frames, P prefix tokens, N patches, L = P + N tokens per frame, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clipvid.adapters.base import AdapterConfig, AdapterOutput, split_prefix
from clipvid.adapters.matching import SOLVERS, Solver, assign, invert, matched_similarity
from clipvid.adapters.temporal_attention import TemporalAttention
from clipvid.registry import check_option


@dataclass(frozen=True)
class ATAConfig(AdapterConfig):
    """Options of ATA.

    solver: of the matching, `exact` (optimal; on the CPU) or `greedy` (on the device); see `matching.assign`.
    match_on: what is compared, the tokens of the `stream` or the `normed` ones that attention sees.
    """

    solver: Solver = "exact"
    match_on: Literal["stream", "normed"] = "stream"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option("ata", "solver", self.solver, SOLVERS)
        check_option("ata", "match_on", self.match_on, ("stream", "normed"))


class ATA(TemporalAttention):
    """One block's attention along tubes of matched patches. Prefix tokens each have a tube of their own.

    Gradients flow through the tokens that are gathered and not through the matching.
    """

    Config = ATAConfig
    papers = ("Zhao et al., NeurIPS 2022, https://arxiv.org/abs/2210.00132",)

    def forward(self, tokens: Tensor, grid: tuple[int, int], trace: bool = False) -> AdapterOutput:
        """See `Adapter`. trace: `tubes` [B, T, N], the patch of frame t on each tube, tube i being patch i of frame 0;
        `similarity` [B, T-1], total cosine of the matched patches of each pair; `attention` [B, P+N, T, T] as in
        `TemporalAttention`, by tube."""
        b, t, length, width = tokens.shape
        normed = self.norm(tokens)
        _, patches = split_prefix(tokens if self.config.match_on == "stream" else normed, grid)
        similarity = frame_similarity(patches)
        matches = assign(similarity, self.config.solver)
        tubes = compose(matches)
        rows = tube_rows(tubes, length - tubes.shape[2]).flatten()
        along = normed.flatten(0, 2).index_select(0, rows).view(b, length, t, width)
        update, seen = self.attend(along, trace)
        if seen is not None:
            seen |= {"tubes": tubes, "similarity": matched_similarity(similarity, matches)}
        return AdapterOutput(update.flatten(0, 2).index_select(0, invert(rows)).view_as(tokens), trace=seen)


def frame_similarity(patches: Tensor) -> Tensor:
    """Cosine of every patch of frame t-1 (rows) with every one of frame t: [B, T, N, D] -> [B, T-1, N, N].

    In float32 at least, also under autocast, and without gradient.
    """
    with torch.autocast(patches.device.type, enabled=False):
        exact = torch.promote_types(patches.dtype, torch.float32)
        unit = F.normalize(patches.detach().to(exact), dim=-1)
        return unit[:, :-1] @ unit[:, 1:].mT


def compose(matches: Tensor) -> Tensor:
    """Permutations between neighbouring frames [B, T-1, N] -> tubes [B, T, N].

    `tubes[:, t, i]` is the patch of frame t on the tube that starts at patch i of frame 0.
    """
    b, pairs, n = matches.shape
    tubes = [torch.arange(n, device=matches.device).expand(b, n)]
    for pair in range(pairs):
        tubes.append(matches[:, pair].gather(-1, tubes[-1]))
    return torch.stack(tubes, dim=1)


def tube_rows(tubes: Tensor, num_prefix: int) -> Tensor:
    """Tubes [B, T, N] -> where their tokens lie in [B * T * (P+N), D]: [B, P+N, T], the prefix tokens' tubes first."""
    b, t, n = tubes.shape
    prefix = torch.arange(num_prefix, device=tubes.device).expand(b, t, num_prefix)
    slots = torch.cat([prefix, tubes + num_prefix], dim=-1)
    frames = torch.arange(b * t, device=tubes.device).view(b, t, 1)
    return (frames * (num_prefix + n) + slots).transpose(1, 2)
