"""ATA, Alignment-guided Temporal Attention (Zhao et al., NeurIPS 2022, https://arxiv.org/abs/2210.00132).

Patches of adjacent frames are matched one to one by similarity. The matches form tubes through the clip. Temporal
attention runs along these tubes, before the block's spatial attention.

Known from the paper [abstract]: the alignment of patches of adjacent frames has no parameters. It extends
one-dimensional temporal attention and works with any image backbone. Our choice [construction]: cosine similarity, the
Kuhn-Munkres algorithm per pair of frames, composition of matches over time, and the block of `temporal_attention.py`,
including its temporal embedding.

Shapes: B clips, T frames, P prefix tokens, N patches, L = P + N tokens per frame, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clipvid import InputError
from clipvid.adapters.base import AdapterConfig, AdapterOutput, split_prefix
from clipvid.adapters.marks import Mark, Tracks, patch_centers
from clipvid.adapters.matching import SOLVERS, Solver, assign, invert, matched_similarity
from clipvid.adapters.temporal_attention import TemporalAttention
from clipvid.registry import check_option


@dataclass(frozen=True)
class ATAConfig(AdapterConfig):
    """Options of ATA.

    Attributes:
        solver: Matching algorithm, `exact` (optimal, on the CPU) or `greedy` (on the device); see `matching.assign`.
        match_on: Tokens to compare, those of the residual `stream` or the `normed` ones that attention sees.
    """

    solver: Solver = "exact"
    match_on: Literal["stream", "normed"] = "stream"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option("ata", "solver", self.solver, SOLVERS)
        check_option("ata", "match_on", self.match_on, ("stream", "normed"))


class ATA(TemporalAttention):
    """Temporal attention of one block along tubes of matched patches.

    Each prefix token forms a separate tube. Gradients flow through the gathered tokens and not through the matching.
    """

    Config = ATAConfig
    papers = ("Zhao et al., NeurIPS 2022, https://arxiv.org/abs/2210.00132",)

    def forward(self, tokens: Tensor, grid: tuple[int, int], trace: bool = False) -> AdapterOutput:
        """Return the update of the tokens; see `Adapter.forward`.

        The trace holds:
        - `tubes` [B, T, N]: the patch of frame t on each tube. Tube i starts at patch i of frame 0.
        - `similarity` [B, T-1]: total cosine similarity of the matched patches of each pair of frames.
        - `attention` [B, P+N, T, T]: attention weights by tube, as in `TemporalAttention`.
        """
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

    def check_export(self, any_frames: bool) -> None:
        """Refuse the exact solver, which runs outside of a graph, and variable numbers of frames."""
        if self.config.solver == "exact":
            raise InputError(
                "ata with solver: exact cannot be exported, since scipy solves it outside of the graph; set solver: "
                "greedy in the model's config (adapter: {name: ata, solver: greedy}) and evaluate it again"
            )
        if any_frames:
            raise InputError("ata follows patches from frame to frame, which fixes their number; use --frames fixed")

    def draw_trace(self, trace: dict[str, Tensor], grid: tuple[int, int]) -> list[Mark]:
        """Return the tubes and the attention along them; see `Adapter.draw_trace`."""
        note = "Each line follows one patch of the first frame through its matches. Attention over time runs along it."
        tubes = patch_centers(grid)[trace["tubes"][0]].transpose(0, 1)
        return [Tracks("tubes", note, tubes), *super().draw_trace(trace, grid)]


def frame_similarity(patches: Tensor) -> Tensor:
    """Return the cosine similarity of the patches of adjacent frames: [B, T, N, D] -> [B, T-1, N, N].

    Rows are patches of frame t-1, columns are patches of frame t. The result is at least float32, also under autocast,
    and carries no gradient.
    """
    with torch.autocast(patches.device.type, enabled=False):
        exact = torch.promote_types(patches.dtype, torch.float32)
        unit = F.normalize(patches.detach().to(exact), dim=-1)
        return unit[:, :-1] @ unit[:, 1:].mT


def compose(matches: Tensor) -> Tensor:
    """Compose permutations between adjacent frames [B, T-1, N] into tubes [B, T, N].

    `tubes[:, t, i]` is the patch of frame t on the tube that starts at patch i of frame 0.
    """
    b, pairs, n = matches.shape
    tubes = [torch.arange(n, device=matches.device).expand(b, n)]
    for pair in range(pairs):
        tubes.append(matches[:, pair].gather(-1, tubes[-1]))
    return torch.stack(tubes, dim=1)


def tube_rows(tubes: Tensor, num_prefix: int) -> Tensor:
    """Return the rows of the tubes' tokens in a [B * T * (P+N), D] matrix: [B, T, N] -> [B, P+N, T], prefix first."""
    b, t, n = tubes.shape
    prefix = torch.arange(num_prefix, device=tubes.device).expand(b, t, num_prefix)
    slots = torch.cat([prefix, tubes + num_prefix], dim=-1)
    frames = torch.arange(b * t, device=tubes.device).view(b, t, 1)
    return (frames * (num_prefix + n) + slots).transpose(1, 2)
