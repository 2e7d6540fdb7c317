"""Evaluation loop, metrics, results, weight space and reports."""
