"""A thousand to fifty thousand images, one GPU; the recipe for a folder of one's own.

Command: `opendino train FOLDER`
Crop sizes, prototypes, momentum and batch follow the size of the set and of its images ("auto"), with four local crops.
Price: about 25 GFLOP an image and epoch at 224 px, so hours on a GPU and days on a CPU; for a CPU take
`--backbone resnet18/3x3 --method.global-size-px 32`, or fewer epochs. No figure is claimed yet.
"""

from __future__ import annotations

from opendino.config import Config
from opendino.methods import dino


def config(data: str) -> Config:
    """The run on `data`."""
    return Config(
        data=data,
        backbone="vit_small/16",
        epochs=200,
        method=dino.Config(
            global_size_px="auto",
            local_size_px="auto",
            local_crops=6,
            out_dim="auto",
            momentum="auto",
            teacher_temp=0.04,
        ),
    )
