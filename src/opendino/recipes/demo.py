"""DINO on ten synthetic gray textures of 32 px: learns in five minutes on two CPU cores.

Command: `make demo`, or `opendino demo`
"""

from __future__ import annotations

from opendino.config import Config
from opendino.engine import optim
from opendino.methods import dino

DATA = "toy:textures?n=2000&size=32"


def config(data: str = DATA) -> Config:
    """The settings for `data`."""
    return Config(
        data=data,
        val="toy:textures?n=1000&size=32&split=val",
        backbone="conv4",
        drop_path=0.0,
        steps=800,
        batch=64,
        devices=1,
        method=dino.Config(
            global_size_px=32,
            local_size_px=16,
            local_crops=4,
            global_scale=(0.4, 1.0),
            local_scale=(0.15, 0.4),
            blur=(0.2, 0.1, 0.1),
            out_dim=256,
            hidden_dim=256,
            bottleneck_dim=64,
            teacher_temp=0.04,
            momentum=0.95,
            momentum_end=0.99,
        ),
        optim=optim.Config(lr=1.2e-2, min_lr=1e-5, weight_decay=0.04, weight_decay_end=0.04, clip=3.0),
        eval_images=3000,
    )
