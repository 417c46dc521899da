"""Augmentations of a view, one per file; the file name is the name of its settings, as in `--views.global.blur.p 0.5`.

Each module has

- `ORDER`: augmentations are applied in increasing order;
- `Config`: a frozen `Checked` dataclass. `p` is the probability; at 0 the augmentation costs nothing;
- `sample(config, numbers) -> dict of arrays [V B ...]`: random parameters, without pixels. At `p=0` they leave an image
  as it is;
- `title(parameters) -> str | None`: the parameters of one view as text, None if it stays as it is;
- either `apply(x, parameters, configs) -> x` for float32 pixels `[V B C H W]` in [0, 1], where `parameters` are tensors
  on the device and `configs` are the settings of the V views. It has no data-dependent shapes and never waits for the
  device; it may overwrite x. Or `place(placement, parameters) -> placement`, which changes where the crop reads its
  pixels;
- with `apply`, optionally `drawn(parameters) -> bool [V B]`: which views change. On a CPU, `apply` then gets only these
  views, as `[1 n C H W]`, a part of them at a time, with their parameters.
"""
