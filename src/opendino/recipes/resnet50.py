"""ResNet-50, 100 epochs: the small ConvNet run of the original.

Command: `torchrun --nproc-per-node 8 -m opendino train IMAGENET/train --recipe resnet50 --val IMAGENET/val`
Expected on ImageNet-1k: the original has a log of this run, but no accuracy in its README; its 800-epoch run with
LARS and a batch of 4,080 reaches k-NN 67.5%, linear 75.3%. Not yet run by us.
Source of the numbers: the original's README: SGD, lr 0.03, weight decay 1e-4 throughout, crops (0.14, 1) and
(0.05, 0.14); eight local crops, teacher temperature 0.04 throughout, batch 512. BatchNorm statistics are computed over
all views of one size on a device: see `optim.grad_accum_steps` in docs/tour.md before using micro-batches.
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
        backbone="resnet50",
        epochs=100,
        batch=512,
        drop_path=0.0,
        method=dino.Config(
            teacher_temp=0.04,
            teacher_temp_start=0.04,
            teacher_temp_warmup="0ep",
        ),
        views=changed(dino.VIEWS, {"local.number": 8, "all.crop.scale": (0.14, 1.0), "local.crop.scale": (0.05, 0.14)}),
        optim=optim.Config(name="sgd", lr=0.03, weight_decay=1e-4, weight_decay_end=1e-4),
    )
