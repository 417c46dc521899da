"""Evaluation protocols for frozen features, one per file."""
