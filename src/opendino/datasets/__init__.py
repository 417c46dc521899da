"""Datasets for evaluation only: segmentation masks, DAVIS videos, revisited Oxford and Paris, copies of images."""
