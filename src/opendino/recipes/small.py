"""The default for your own images: 1,000 to 50,000 images on one GPU, or on a CPU.

Command: `opendino train FOLDER`
Network, crops, prototypes, momentum, learning rate, length and batch are chosen from the device, the number of images
and their size ("auto"); the run prints the reasons.
Cost at 224 px: about 90 GFLOP per image and epoch for ViT-S/16, which is hours on one GPU. On a CPU a small
convolutional network is trained for 20 minutes on views of at most 64 px (1.5 GFLOP per image). Accuracy on a CPU:
docs/results.md.
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
            head_batch_norm="auto",
            out_dim="auto",
            centering="auto",
            momentum="auto",
            momentum_end="auto",
            teacher_temp="auto",
        ),
        views=changed(
            dino.VIEWS,
            {
                "global.size": "auto",
                "local.size": "auto",
                "local.number": "auto",
                "all.crop.scale": "auto",
                "all.blur.p": "auto",
                "all.color_jitter.brightness": "auto",
                "all.color_jitter.contrast": "auto",
                "all.color_jitter.saturation": "auto",
                "all.color_jitter.hue": "auto",
                "all.gray.p": "auto",
                "second.solarize.p": "auto",
            },
        ),
        optim=optim.Config(name="auto", lr="auto", weight_decay_end="auto"),
    )
