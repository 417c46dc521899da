"""Go on from weights that have learnt already, on images of one's own.

Command: `opendino train FOLDER --recipe continued --init MODEL`, MODEL a run, an imported model or timm:NAME; the
recipe is the one taken with `--init` where none is named
A fresh head is warmed up for a tenth of the run while the backbone stands still. Then the backbone follows at a fifth
of the usual rate, each stage at three quarters of the one above it, so that what the first stages know stays. The
teacher starts from the same weights. The end says whether the result is better than the start. No figure is claimed.
"""

from __future__ import annotations

from opendino.config import Config
from opendino.engine import optim
from opendino.methods import dino


def config(data: str) -> Config:
    """The run on `data`; its `init` is to be given."""
    return Config(
        data=data,
        backbone="auto",
        epochs=50,
        method=dino.Config(
            global_size_px="auto",
            local_size_px="auto",
            local_crops=6,
            out_dim="auto",
            momentum="auto",
            teacher_temp=0.04,
        ),
        optim=optim.Config(lr=1e-4, layer_decay=0.75, freeze_backbone="10%", weight_decay_end=0.04),
    )
