"""Augmented views of images on the training device: random parameters, pixel operations, multi-crop."""
