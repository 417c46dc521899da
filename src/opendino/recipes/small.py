"""A thousand to fifty thousand images, one GPU; the recipe for a folder of one's own.

Command: `opendino train FOLDER`
Network, crops, prototypes, momentum, learning rate, length and batch follow device, set and images ("auto"),
and the run says why.
Cost at 224 px: about 90 GFLOP an image and epoch for ViT-S/16, so hours for a set of this size on one GPU. On a CPU
images of up to 160 px get a small convolutional network and about ten minutes of one core, larger ones ViT-Ti/16 at
96 px (about 5 GFLOP an image and epoch). No figure is claimed yet.
"""

from __future__ import annotations

from opendino.config import Config
from opendino.engine import optim
from opendino.methods import dino


def config(data: str) -> Config:
    """The run on `data`."""
    return Config(
        data=data,
        backbone="auto",
        epochs="auto",
        method=dino.Config(
            global_size_px="auto",
            local_size_px="auto",
            local_crops="auto",
            global_scale="auto",
            local_scale="auto",
            blur="auto",
            hidden_dim="auto",
            bottleneck_dim="auto",
            out_dim="auto",
            momentum="auto",
            momentum_end="auto",
            teacher_temp=0.04,
        ),
        optim=optim.Config(lr="auto", weight_decay_end="auto"),
    )
