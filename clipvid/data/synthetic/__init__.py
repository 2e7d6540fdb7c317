"""Synthetic world of moving objects, as videos and as captioned stills."""
