"""X-CLIP (Ni et al., ECCV 2022, https://arxiv.org/abs/2208.02816): frames exchange messages inside the attention.

Per block and frame, the class token `c_t` gives a message, and the messages of all frames attend to each other:

    m_t = W c_t + b,    m <- m + MHA_T(LN(m))

The spatial attention of frame t then sees the message as one more token, which is dropped afterwards. Everything is
known from the authors' code [code]; outputs equal transformers' `XCLIPModel`. The rest of the model are `pooling: mit`
and video-specific prompts (`head: {name: text, prompt_layers: 2}`).

Shapes: B clips, T frames, P prefix tokens, N patches, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from clipvid import InputError
from clipvid.adapters.base import Adapter, AdapterConfig, AdapterOutput, BlockInfo, split_prefix
from clipvid.adapters.marks import FrameMatrix, Mark
from clipvid.layers.attention import SelfAttention


@dataclass(frozen=True)
class XCLIPConfig(AdapterConfig):
    """Options of X-CLIP.

    Attributes:
        drop_path: Probability of dropping the attention between the messages of a clip in training.
    """

    drop_path: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.drop_path < 1:
            raise InputError(f"xclip: drop_path={self.drop_path} must be in [0, 1)")


class XCLIP(Adapter):
    """Message token of one block. It is not the identity when new: the attention has one more token.

    The trace holds `attention` [B, T, T], averaged over heads. Row t has the weights of message t for all messages.
    """

    Config = XCLIPConfig
    papers = ("Ni et al., ECCV 2022, https://arxiv.org/abs/2208.02816",)
    place = "before_attention"
    identity_at_init = False
    adds_context = True
    needs_class_token = True

    def __init__(self, config: XCLIPConfig, block: BlockInfo):
        from torchvision.ops import StochasticDepth  # slow to import, and not needed to parse a config

        super().__init__(config, block)
        self.message_fc = nn.Linear(block.width, block.width)
        self.message_ln = nn.LayerNorm(block.width)
        self.message_attn = SelfAttention(block.width, block.num_heads)
        self.drop_path = StochasticDepth(config.drop_path, mode="row")

    def forward(self, tokens: Tensor, grid: tuple[int, int], trace: bool = False) -> AdapterOutput:
        """Return the message tokens [B, T, 1, D] as context; see `Adapter.forward`."""
        prefix, _ = split_prefix(tokens, grid)
        if prefix.shape[2] == 0:
            raise InputError("xclip reads the class token of each frame, but the tokens have no prefix")
        message = self.message_fc(prefix[:, :, 0])
        normed = self.message_ln(message)
        seen = {"attention": self.message_attn.mean_weights(normed)} if trace else None
        message = message + self.drop_path(self.message_attn(normed))
        return AdapterOutput(trace=seen, context=message.unsqueeze(2))

    def draw_trace(self, trace: dict[str, Tensor], grid: tuple[int, int]) -> list[Mark]:
        """Return the attention between the messages; see `Adapter.draw_trace`."""
        note = "Weights with which the message of a frame (row) reads the messages of the frames (columns)."
        return [FrameMatrix("messages between frames", note, trace["attention"][0].float())]
