"""Views of images, made on the device: random parameters, pixel operations, multi-crop."""
