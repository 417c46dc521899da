"""From a source of images to views on the training device."""
