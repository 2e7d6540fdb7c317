"""From files to frames: demuxing, readers, folders of images."""
