"""Layers that know nothing of models."""
