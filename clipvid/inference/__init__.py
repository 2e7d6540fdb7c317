"""From videos to scores: predictor, bank of adapters, transformers' Auto classes."""
