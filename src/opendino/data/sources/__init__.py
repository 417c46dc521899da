"""Sources of images, one file for each kind, with `matches(data)` and `build(data)`."""
