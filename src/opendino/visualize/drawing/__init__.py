"""Shared by the visualizations: encoding images, tiles with captions, figures, PCA colors."""
