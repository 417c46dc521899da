"""ViT-S/16, 100 epochs: the "vanilla" run of DINO v1.

Command: `torchrun --nproc-per-node 8 -m opendino train IMAGENET/train --recipe vits16_100ep --val IMAGENET/val`
Expected on ImageNet-1k: k-NN 69.3%, linear 74.0%, in 1.75 days on 8 V100 (the original's README; a user's
reproduction reached 68.4% k-NN, facebookresearch/dino issue 280). Not yet run by us.
Source of the numbers: the defaults of the original's main_dino.py, with a total batch of 512 and eight local crops.
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
        backbone="vit_small/16",
        epochs=100,
        batch=512,
        method=dino.Config(
            teacher_temp=0.04,
            teacher_temp_start=0.04,
            teacher_temp_warmup="0ep",
        ),
        views=changed(dino.VIEWS, {"local.number": 8, "all.crop.scale": (0.4, 1.0), "local.crop.scale": (0.05, 0.4)}),
        optim=optim.Config(),
    )
