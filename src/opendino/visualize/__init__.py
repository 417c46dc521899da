"""Visualizations, one kind per file; they need no display."""
