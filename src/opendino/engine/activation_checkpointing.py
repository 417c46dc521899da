"""Activation checkpointing (Chen et al. 2016): memory for a third more computing."""

from __future__ import annotations

import functools

from torch.utils.checkpoint import checkpoint

from opendino.core.contracts import Backbone
from opendino.core.errors import UserError


def checkpoint_activations(backbone: Backbone) -> None:
    """From now on keep only what goes into each transformer block, and work out the rest anew on the way back.

    The numbers stay the same, bit for bit: chance (drop path) is replayed.

    Raises:
        UserError: It has no transformer blocks. BatchNorm would count what it sees twice.
    """
    blocks = backbone.transformer_blocks()
    if not blocks:
        raise UserError(
            f"{backbone.name} has no transformer blocks whose activations could be worked out anew",
            "Leave --activation-checkpointing off; save memory by --optim.grad-accum-steps",
        )
    for block in blocks:
        # In place of the method and not around the module, so that names of parameters stay.
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
