"""Config, trainer, objectives, optimizer, checkpoints, averaging and self-supervision."""
