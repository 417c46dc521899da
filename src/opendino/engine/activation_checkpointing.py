"""Activation checkpointing (Chen et al. 2016, arXiv:1604.06174): less memory for about a third more computation."""

from __future__ import annotations

import functools

from torch.utils.checkpoint import checkpoint

from opendino.core.contracts import Backbone
from opendino.core.errors import UserError


def checkpoint_activations(backbone: Backbone) -> None:
    """Store only the input of each transformer block and recompute its activations in the backward pass, in place.

    Results stay bit-identical: the random state of stochastic depth is restored before the recomputation.

    Args:
        backbone: Its blocks are changed in place; parameter names stay.

    Raises:
        UserError: The backbone has no transformer blocks. Convolutional networks are refused because BatchNorm would
            update its running statistics twice.
    """
    blocks = backbone.transformer_blocks()
    if not blocks:
        raise UserError(
            f"{backbone.name} has no transformer blocks, so activation checkpointing is not possible",
            "Remove --activation-checkpointing; to save memory raise --optim.grad-accum-steps",
        )
    for block in blocks:
        # Replace the method instead of wrapping the module, so that parameter names do not change.
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
