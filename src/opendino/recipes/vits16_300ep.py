"""ViT-S/16, 300 epochs, the paper's crops: two of 224 px and ten of 96 px. The reference run.

Command: `torchrun --nproc-per-node 16 -m opendino train IMAGENET/train --recipe vits16_300ep --val IMAGENET/val`
Expected on ImageNet-1k: k-NN 73.3%, linear 76.0%, in 2.6 days on 16 V100 (the original's README, with eight
local crops of scale 0.05-0.4). With ten local crops, scale 0.25 and 800 epochs the paper reports 74.5% and 77.0%.
Not yet run by us.
Source of the numbers: the original's README ("boosting"): teacher temperature 0.04 to 0.07 over 30 epochs, trainable
prototype norms; crops as in the paper's released ViTs.
"""

from __future__ import annotations

from opendino.config import Config
from opendino.methods import dino


def config(data: str) -> Config:
    """The settings for `data`."""
    return Config(
        data=data,
        backbone="vit_small/16",
        epochs=300,
        batch=1024,
        method=dino.Config(norm_last_layer=False),
    )
