"""Conversion of released checkpoints to `VideoCLIP`, one file per kind."""

from clipvid.convert.action_clip import from_action_clip
from clipvid.convert.ila import from_ila
from clipvid.convert.kinds import KINDS, convert_checkpoint, find_kind
from clipvid.convert.mote import from_mote
from clipvid.convert.st_adapter import from_st_adapter
from clipvid.convert.vifi_clip import from_vifi_clip
from clipvid.convert.xclip import from_xclip

__all__ = [
    "KINDS",
    "convert_checkpoint",
    "find_kind",
    "from_action_clip",
    "from_ila",
    "from_mote",
    "from_st_adapter",
    "from_vifi_clip",
    "from_xclip",
]
