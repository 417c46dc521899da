"""Continue training a pretrained model on your own images.

Command: `opendino train FOLDER --recipe continued --init MODEL`, with MODEL a run, an imported model or timm:NAME. This
is the default recipe with `--init`.
The backbone is frozen for the first 10% of the run, while the new head is warmed up. Then it trains at a fifth of the
usual learning rate, with layer-wise decay 0.75 per stage, so that the early stages keep their features. The teacher
starts from the same weights. The run ends with a comparison of the result with the start. No expected accuracy yet.
"""

from __future__ import annotations

from opendino.config import Config
from opendino.engine import optim
from opendino.methods import dino
from opendino.views.settings import changed


def config(data: str) -> Config:
    """The settings for `data`; `init` must be set by the caller."""
    return Config(
        data=data,
        backbone="auto",
        epochs=50,
        method=dino.Config(
            out_dim="auto",
            momentum="auto",
            teacher_temp=0.04,
        ),
        views=changed(dino.VIEWS, {"global.size": "auto", "local.size": "auto", "local.number": 6}),
        optim=optim.Config(lr=1e-4, layer_decay=0.75, freeze_backbone="10%", weight_decay_end=0.04),
    )
