"""The default for your own images: 1,000 to 50,000 images on one GPU, or small images on a CPU.

Command: `opendino train FOLDER`
Network, crops, prototypes, momentum, learning rate, length and batch are chosen from the device, the number of images
and their size ("auto"); the run prints the reasons.
Cost at 224 px: about 90 GFLOP per image and epoch for ViT-S/16, which is hours on one GPU. On a CPU, images up to
160 px train a small convolutional network for 7 minutes on one core with bfloat16 products and up to 40 on one without,
larger ones ViT-Ti/16 at 96 px (about 5 GFLOP per image and epoch). No expected accuracy yet.
"""

from __future__ import annotations

from opendino.config import Config
from opendino.engine import optim
from opendino.methods import dino
from opendino.views.settings import changed


def config(data: str) -> Config:
    """The settings for `data`."""
    return Config(
        data=data,
        backbone="auto",
        epochs="auto",
        method=dino.Config(
            hidden_dim="auto",
            bottleneck_dim="auto",
            out_dim="auto",
            momentum="auto",
            momentum_end="auto",
            teacher_temp=0.04,
        ),
        views=changed(
            dino.VIEWS,
            {
                "global.size": "auto",
                "local.size": "auto",
                "local.number": "auto",
                "all.crop.scale": "auto",
                "all.blur.p": "auto",
            },
        ),
        optim=optim.Config(lr="auto", weight_decay_end="auto"),
    )
