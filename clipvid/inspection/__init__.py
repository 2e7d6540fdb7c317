"""Inspection of video data before training: is it clean, and does it need the order of frames."""
