"""Aerial and satellite images: any bands and bits, no side is up, a pixel is always as many meters.

Command: `opendino train FOLDER --recipe aerial`
As `small`, with flips and quarter turns, crops that are not resized, and no inversion (solarize). Bands that are not
red, green and blue get noise, and with a ViT changes of brightness and contrast, each for itself.
Cost: as `small`, for each band beyond three about 1 % more in the network, and as many more bytes in cache and
transfer; 16 bits take twice the bytes of 8. Cut scenes into tiles first.
Accuracy: docs/results.md has `small` on eurosat64; 700 steps of 64 of this recipe on a CPU have a k-NN of 77.9 ± 2.1 %
of 375 held out of the training images there, 71.5 % without changes of color (docs/log.md).
"""

from __future__ import annotations

from dataclasses import replace

from opendino.config import Config
from opendino.recipes import small
from opendino.views.settings import changed


def config(data: str) -> Config:
    """The settings for `data`."""
    base = small.config(data)
    views = changed(base.views, {"all.crop.fixed": True, "all.solarize.p": 0.0})
    return replace(base, orientation="any", views=views)
