"""What the visualizations share: encoding images, tiles with captions, figures, PCA colors."""
