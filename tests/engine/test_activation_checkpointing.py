"""Activation checkpointing: the same gradients, bit for bit, and unchanged parameter names."""

from __future__ import annotations

import copy

import pytest
import torch

from opendino.core.errors import UserError
from opendino.engine.activation_checkpointing import checkpoint_activations
from opendino.models import build

OPTIONS = {
    "vit/8": {"embed_dim": 24, "depth": 3, "num_heads": 2, "drop_path": 0.5},
    "vit_tiny_patch16_224": {"drop_path": 0.2, "depth": 2},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_gradients_are_the_same_bit_for_bit(name: str) -> None:
    plain = build.backbone(name, image_px=32, **OPTIONS[name]).train()
    saving = copy.deepcopy(plain)
    checkpoint_activations(saving)
    images = [torch.randn(4, 3, 32, 32)]
    kept = []
    for network in (plain, saving):
        torch.manual_seed(1)  # drop path
        number = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, n=number: n.append(x.numel()) or x, lambda x: x):
            loss = network(images)[0].square().sum()
        torch.manual_seed(2)  # what happens in between must not matter
        loss.backward()
        kept.append(sum(number))
    assert kept[1] < kept[0] / 2
    assert [key for key, _ in plain.named_parameters()] == [key for key, _ in saving.named_parameters()]
    for (key, one), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), key


def test_a_copy_works_out_its_own_activations() -> None:
    network = build.backbone("vit/8", image_px=32, embed_dim=24, depth=1, num_heads=2)
    checkpoint_activations(network)
    other = copy.deepcopy(network)
    for parameter in other.parameters():
        parameter.data.zero_()
    assert not torch.equal(*(each([torch.ones(1, 3, 32, 32)])[0] for each in (network, other)))


def test_networks_without_such_blocks_are_refused() -> None:
    with pytest.raises(UserError, match="conv4 has no transformer blocks"):
        checkpoint_activations(build.backbone("conv4"))
