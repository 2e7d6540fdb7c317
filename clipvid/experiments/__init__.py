"""Protocols, evaluations, suites and the demo."""
