"""Aerial and satellite images: any bands and bits, no side is up, a pixel is always as many meters.

Command: `opendino train FOLDER --recipe aerial`
As `small`, with flips and quarter turns, crops that are not resized, and changes of each band instead of colors, none
of them with the small network of a CPU: the color of land says what it is.
Cost: as `small`, for each band beyond three about 1 % more in the network, and as many more bytes in cache and
transfer; 16 bits take twice the bytes of 8. Cut scenes into tiles first.
Accuracy of `small` on eurosat64: docs/results.md; of this recipe none is measured yet.
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
        "all.color_jitter.p": 0.0,
        "all.gray.p": 0.0,
        "all.solarize.p": 0.0,
        "all.channel_jitter.p": 0.8,
        "all.channel_jitter.brightness": "auto",
        "all.channel_jitter.contrast": "auto",
    }
    return replace(base, orientation="any", views=changed(base.views, views))
