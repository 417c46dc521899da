"""Weights in a network of another image size, patch size, number of channels or registers."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import interpolate

from opendino.core.errors import UserError
from opendino.models.adapt import adapt
from opendino.models.build import backbone

SIZES = {"embed_dim": 24, "depth": 2, "num_heads": 3}


def vit(seed: int = 0, patch: int = 4, **options: object):
    torch.manual_seed(seed)
    return backbone(f"vit/{patch}", **{"image_px": 16, **SIZES, **options}).eval()


def test_equal_networks_become_equal_and_nothing_is_said() -> None:
    weights, network = vit(0), vit(1)
    assert adapt(weights, network, "there") == []
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(weights([images])[0], network([images])[0])


def test_positions_are_resampled_and_all_else_is_kept() -> None:
    weights, network = vit(0), vit(1, image_px=32)
    assert adapt(weights, network, "there") == ["pos_embed: a grid of 4 × 4 became 8 × 8"]
    assert torch.equal(network.pos_embed[:, 0], weights.pos_embed[:, 0])
    square = weights.pos_embed[:, 1:].mT.unflatten(2, (4, 4))
    wanted = interpolate(square, size=(8, 8), mode="bicubic", antialias=True, align_corners=False)
    torch.testing.assert_close(network.pos_embed[:, 1:], wanted.flatten(2).mT)
    others = [key for key in network.state_dict() if key != "pos_embed"]
    assert all(torch.equal(network.state_dict()[key], weights.state_dict()[key]) for key in others)


def test_enlarged_patches_are_seen_as_the_old_ones_were() -> None:
    weights, network = vit(0), vit(1, patch=8, image_px=32)
    assert adapt(weights, network, "there") == ["patch_embed.proj.weight: patches of 4 px became 8 px"]
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    old, new = weights.double().patch_embed, network.double().patch_embed
    # A patch is enlarged on its own: what lies beyond its edge is no part of it. Weights are float32 in between.
    patches = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 4, 4)
    large = interpolate(patches, size=(8, 8), mode="bicubic", antialias=True, align_corners=False)
    torch.testing.assert_close(new(large), old(patches), rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_gray_images_are_seen_alike_whatever_the_number_of_channels(channels: int) -> None:
    weights, network = vit(0), vit(1, in_chans=channels)
    assert adapt(weights, network, "there") == [f"patch_embed.proj.weight: 3 channels became {channels}"]
    gray = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(
        network([gray.expand(-1, channels, -1, -1)])[0], weights([gray.expand(-1, 3, -1, -1)])[0]
    )


def test_added_registers_start_fresh() -> None:
    weights, network = vit(0), vit(1, num_registers=2)
    fresh = network.reg_token.clone()
    assert adapt(weights, network, "there") == ["2 registers start from random weights"]
    assert torch.equal(network.reg_token, fresh)
    assert torch.equal(network.cls_token, weights.cls_token)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "conv4"])
def test_other_families_at_another_size(name: str) -> None:
    torch.manual_seed(0)
    weights, network = (backbone(name, **({} if name == "conv4" else {"image_px": px})).eval() for px in (64, 96))
    said = adapt(weights, network, "there")
    assert len(said) == (name == "test_vit")
    same = [key for key in network.state_dict() if not key.endswith("pos_embed")]
    assert all(torch.equal(network.state_dict()[key], weights.state_dict()[key]) for key in same)


def test_what_cannot_be_adapted_is_named() -> None:
    for network, words in (
        (vit(embed_dim=48), "cls_token"),
        (vit(depth=3), "blocks.2"),
        (backbone("conv4"), "net.0.weight"),
    ):
        with pytest.raises(UserError, match=f"there does not fit.*{words}"):
            adapt(vit(), network, "there")
    with pytest.raises(UserError, match="also has reg_token"):
        adapt(vit(num_registers=2), vit(), "there")
