"""Training methods, one per module, each with `Config`, `views` and `build`."""
