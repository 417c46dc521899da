"""Surfaces and parts before a factory camera, gray or color: no side is up, defects of a few pixels are kept.

Command: `opendino train FOLDER --recipe industrial`
As `small`, with flips and quarter turns, crops that are not resized, and changes of light and noise, but not of color.
If parts always lie alike, add `--orientation photo`.
Cost: as `small`. Images are cached at full size, up to 16 million pixels: cut larger ones with `opendino pack --tiles`
first. Accuracy of `small` on steel surfaces: docs/results.md; of this recipe none is measured yet.
"""

from __future__ import annotations

from dataclasses import replace

from opendino.config import Config
from opendino.recipes import small
from opendino.views.settings import changed


def config(data: str) -> Config:
    """The settings for `data`."""
    base = small.config(data)
    views = {
        "all.crop.fixed": True,
        "all.color_jitter.brightness": 0.4,
        "all.color_jitter.contrast": 0.4,
        "all.color_jitter.hue": 0.0,
        "all.color_jitter.saturation": 0.0,
        "all.gray.p": 0.0,
        "all.solarize.p": 0.0,
        "all.noise.p": 0.2,
        "all.noise.std": (0.0, 0.05),
    }
    return replace(base, orientation="any", views=changed(base.views, views))
