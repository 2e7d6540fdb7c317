"""Layers that are independent of models."""
