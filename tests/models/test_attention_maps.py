"""Which patches the feature of an image rests on."""

from __future__ import annotations

import pytest
import torch

from opendino.models.attention_maps import cls_attention, contribution_to_mean, keep_mass
from opendino.models.build import backbone
from opendino.models.load import Model, preprocessing


@pytest.mark.parametrize(
    ("attention", "mass", "kept"),
    [
        ([0.5, 0.3, 0.2], 0.6, [1, 1, 0]),  # one alone is not enough
        ([0.1, 0.6, 0.3], 0.6, [0, 1, 0]),  # exactly enough
        ([5.0, 3.0, 2.0], 0.9, [1, 1, 1]),  # scale does not matter
        ([0.7, 0.3, 0.0], 1.0, [1, 1, 0]),
        ([0.7, 0.2, 0.1], 0.01, [1, 0, 0]),  # never nothing
    ],
)
def test_the_fewest_patches_that_hold_the_mass(attention: list[float], mass: float, kept: list[int]) -> None:
    assert keep_mass(torch.tensor(attention), mass).int().tolist() == kept


def test_mass_is_kept_along_the_last_dimension() -> None:
    attention = torch.rand(4, 3, 50)
    kept = keep_mass(attention, 0.6)
    held = (attention * kept).sum(-1) / attention.sum(-1)
    weakest = attention.masked_fill(~kept, 2).amin(-1) / attention.sum(-1)
    assert (held >= 0.6).all() and (held - weakest < 0.6).all()


def test_registers_and_cls_are_left_out() -> None:
    vit = backbone("vit/4", image_px=16, embed_dim=24, depth=2, num_heads=3, num_registers=2)
    images = torch.randn(2, 3, 8, 12)
    found = cls_attention(Model(vit, preprocessing(16), {}), images, (2, 3))
    with torch.no_grad():
        whole = vit.attention(images)
    assert found.shape == (2, 3, 2, 3)
    assert torch.equal(found.flatten(2), whole[:, :, 0, 3:])


def test_shares_of_a_pooled_feature_sum_to_one() -> None:
    shares = contribution_to_mean(torch.rand(2, 6, 5), (2, 3))
    assert shares.shape == (2, 1, 2, 3)
    torch.testing.assert_close(shares.sum((1, 2, 3)), torch.ones(2))
    one = torch.zeros(1, 4, 3)
    one[0, 2] = torch.tensor([1.0, 2, 3])
    assert contribution_to_mean(one, (2, 2))[0, 0].tolist() == [[0, 0], [1, 0]]
    assert torch.equal(contribution_to_mean(torch.zeros(1, 4, 3), (2, 2)), torch.zeros(1, 1, 2, 2))
