"""A network of one channel for images of several."""

from __future__ import annotations

from pathlib import Path

import torch
from tests.factories import small_vit

from opendino.models import classifier, segmentation_head
from opendino.models.feature_tokens import Tokens
from opendino.models.load import Model, preprocessing
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


def test_a_classifier_and_a_segmentation_head_come_back_with_it(tmp_path: Path) -> None:
    wanted = preprocessing(16, [0.4] * 3, [0.2] * 3) | {
        "images": {"names": ["a", "b", "c"], "channel_mode": "separate"}
    }
    model = Model(SeparateChannels(small_vit(in_chans=1).eval(), 3), wanted, {})
    linear = classifier.Classifier(torch.randn(2, 72), torch.randn(2), ("x", "y"), Tokens())
    classifier.save(tmp_path / "classifier", model, linear, {})
    head = segmentation_head.SegmentationHead(torch.randn(2, 72), torch.randn(2), (0, 1), 1)
    segmentation_head.save(tmp_path / "head", model, head, {})
    images = torch.randn(2, 3, 16, 16)
    for again, found, made in (
        (*classifier.load_classifier(tmp_path / "classifier"), linear),
        (*segmentation_head.load_head(tmp_path / "head"), head),
    ):
        assert torch.equal(again.backbone.features(images).cls, model.backbone.features(images).cls)
        assert torch.equal(found.weight, made.weight)
