"""Decoding of files into frames: demuxing, readers, folders of images."""
