"""DINO on ten synthetic gray textures of 32 px: learns in a minute on two CPU cores.

Command: `make demo`, or `opendino demo`
"""

from __future__ import annotations

from opendino.config import Config
from opendino.engine import optim
from opendino.methods import dino
from opendino.views.settings import changed

DATA = "toy:textures?n=2000&size=32"


def config(data: str = DATA) -> Config:
    """The settings for `data`."""
    return Config(
        data=data,
        val="toy:textures?n=1000&size=32&split=val",
        backbone="conv4",
        backbone_options={"width": 16},
        drop_path=0.0,
        steps=100,
        batch=64,
        devices=1,
        method=dino.Config(
            out_dim=256,
            hidden_dim=256,
            bottleneck_dim=64,
            head_batch_norm=True,
            centering="sinkhorn",
            teacher_temp=0.02,
            momentum=0.9,
            momentum_end=0.97,
        ),
        views=changed(
            dino.VIEWS,
            {
                "global.size": 32,
                "local.size": 16,
                "local.number": 4,
                "all.crop.scale": (0.4, 1.0),
                "local.crop.scale": (0.15, 0.4),
                "global.blur.p": 0.2,
                "second.blur.p": 0.1,
                "local.blur.p": 0.1,
            },
        ),
        optim=optim.Config(name="muon", lr=1.2e-2, min_lr=1e-5, weight_decay=0.04, weight_decay_end=0.04, clip=3.0),
        eval_images=2000,
        eval_every="34%",
    )
