"""Fine-tune a trained network as a classifier, from labels.

Command: `opendino train DATA --recipe finetune --init MODEL --labels FILE.csv`, or shorter: `opendino finetune MODEL
DATA --labels FILE.csv`, which also takes the size of the views from MODEL.
The new classifier is trained alone for the first fifth of the run. Then the backbone trains with it, at layer-wise
rates: each stage at 0.75 of the rate of the stage above it. A fifth of the labeled images is kept out; at the end the
network is compared with a linear classifier of the frozen features on them. The length is that of Big Transfer
(Kolesnikov et al. 2020, arXiv:1912.11370) for up to 20,000 labels: with more, give --steps 10000. No expected accuracy
yet.
"""

from __future__ import annotations

from opendino.config import Config
from opendino.engine import optim
from opendino.methods import supervised
from opendino.views.settings import changed


def config(data: str) -> Config:
    """The settings for `data`; `init` must be set by the caller."""
    return Config(
        data=data,
        labels="folders",
        hold_out=0.2,
        backbone="auto",
        steps=500,
        method=supervised.Config(),
        views=changed(supervised.VIEWS, {"global.size": "auto"}),
        optim=optim.Config(
            lr=1e-3, lr_warmup="10%", layer_decay=0.75, freeze_backbone="20%", weight_decay=0.05, weight_decay_end=0.05
        ),
    )
