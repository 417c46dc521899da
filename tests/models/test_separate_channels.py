"""A network of one channel for images of several."""

from __future__ import annotations

import torch
from tests.factories import small_vit

from opendino.models.separate_channels import SeparateChannels, network_of


def test_features_are_those_of_the_channels_joined() -> None:
    inner = small_vit(in_chans=1, num_registers=2).eval()
    network, images = SeparateChannels(inner, 3), torch.randn(2, 3, 16, 16)
    each = [inner.features(images[:, channel : channel + 1]) for channel in range(3)]
    found = network.features(images)
    for name in ("cls", "registers", "patches"):
        torch.testing.assert_close(getattr(found, name), torch.cat([getattr(one, name) for one in each], -1))
    assert found.grid == each[0].grid and found.cls.shape[1] == network.embed_dim == 3 * inner.embed_dim
    torch.testing.assert_close(network([images, images[:1]])[1], found.cls[:1])
    attention = torch.stack([inner.attention(images[:, channel : channel + 1]) for channel in range(3)])
    torch.testing.assert_close(network.attention(images), attention.mean(0))
    assert network_of(network) is inner is network_of(inner)
