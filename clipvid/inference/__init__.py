"""Inference on videos: predictor, bank of adapters, transformers' Auto classes."""
