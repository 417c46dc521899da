"""Backbones, heads, and the teacher that follows the student."""
