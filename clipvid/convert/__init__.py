"""Conversion of checkpoints of papers' authors to `VideoCLIP`."""

from clipvid.convert.ila import from_ila

__all__ = ["from_ila"]
