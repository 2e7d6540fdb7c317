"""Explanations of an answer: relevance per patch and frame, importance of frames and order, marks of the adapters."""
