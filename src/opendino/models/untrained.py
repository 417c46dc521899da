"""The untrained network of the same architecture: the baseline that any training has to beat."""

from __future__ import annotations

from typing import Any, cast

import torch

from opendino.models.build import backbone
from opendino.models.load import Model
from opendino.models.separate_channels import SeparateChannels, network_of


def untrained(model: Model, seed: int = 0) -> Model:
    """A model with the architecture and preprocessing of another one and random initial weights, on the CPU.

    Args:
        model: The other model.
        seed: Of the weights; the random numbers of the caller do not change.
    """
    own = network_of(model.backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = backbone(own.name, **cast(dict[str, Any], own.kwargs))
    if own is not model.backbone:
        network = SeparateChannels(network, model.backbone.in_chans)
    return Model(network, model.preprocessing, {})
