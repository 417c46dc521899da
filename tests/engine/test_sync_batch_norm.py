"""Which synchronized BatchNorm a device gets. What it computes: tests/story/test_many_processes.py."""

from __future__ import annotations

import pytest
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

from opendino.engine.sync_batch_norm import SyncBatchNorm, convert


@pytest.mark.parametrize(("device", "kind"), [("cpu", SyncBatchNorm), ("cuda", nn.SyncBatchNorm)])
def test_every_batch_norm_is_replaced_and_its_weights_stay(device: str, kind: type[nn.Module]) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4)), BatchNormAct2d(4), nn.Flatten())
    network.train()(torch.randn(5, 3, 2, 2))  # other statistics than the initial ones
    before, images = network.state_dict(keep_vars=True), torch.randn(5, 3, 2, 2)
    expected = network.eval()(images)
    assert convert(network, torch.device(device)) is network
    assert isinstance(network[1][0], kind) and isinstance(network[2], kind)
    after = network.state_dict(keep_vars=True)
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    torch.testing.assert_close(network(images), expected)  # with the activation


def test_a_layer_alone_is_replaced() -> None:
    assert isinstance(convert(nn.BatchNorm1d(3), torch.device("cpu")), SyncBatchNorm)
