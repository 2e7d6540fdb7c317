"""Videos as data: lists, decoding, sampling, augmentation, loaders and a synthetic world."""
