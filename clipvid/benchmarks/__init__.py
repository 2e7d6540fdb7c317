"""Subjects of `clipvid benchmark`, one module each, the cost model and statistics over seeds."""
