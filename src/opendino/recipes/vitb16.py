"""ViT-B/16, 400 epochs.

Command: `torchrun --nproc-per-node 32 -m opendino train IMAGENET/train --recipe vitb16 --val IMAGENET/val`
Expected on ImageNet-1k: k-NN 76.1%, linear 78.2% (the original's README). Not yet run by us.
Source of the numbers: the arguments published with the original's checkpoint, as quoted by third parties; the
gradient clip of 0.3 in particular is not checked.
"""

from __future__ import annotations

from opendino.config import Config
from opendino.engine import optim
from opendino.methods import dino


def config(data: str) -> Config:
    """The settings for `data`."""
    return Config(
        data=data,
        backbone="vit_base/16",
        epochs=400,
        batch=1024,
        method=dino.Config(freeze_last_layer="3ep", teacher_temp_warmup="50ep"),
        optim=optim.Config(lr=7.5e-4, min_lr=2e-6, clip=0.3),
    )
