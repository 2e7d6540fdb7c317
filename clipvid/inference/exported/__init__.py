"""Exported models: reading and running of the files that `clipvid.inference.export` writes. Nothing imports torch."""
