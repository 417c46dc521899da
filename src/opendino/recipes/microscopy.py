"""Micrographs: any channels and bits, no side is up, objects keep their size in pixels.

Command: `opendino train FOLDER --recipe microscopy`
As `small`, with flips and quarter turns, crops that are not resized, noise, and with a ViT changes of brightness and
contrast of each channel instead of colors: stains and exposures vary by channel, and the size of a cell says something.
Cost: as `small`, for each channel beyond three about 1 % more in the network, and as many more bytes in cache and
transfer; 16 bits take twice the bytes of 8. Images are cached at full size, up to 16 million pixels: cut larger ones,
or those of many objects, into tiles first. Four phases of cells of 40 px with three channels, 400 steps of 64 on a CPU:
k-NN 81.0 ± 2.3 % of 279 held out of the training images, untrained 65.6 % (docs/log.md).
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
        "all.noise.p": 0.2,
        "all.noise.std": (0.0, 0.05),
    }
    return replace(base, orientation="any", views=changed(base.views, views))
