"""The vision transformer compared with timm's, with the same weights."""

from __future__ import annotations

import pytest
import torch

from opendino.models.build import backbone
from opendino.models.timm_backbone import TimmBackbone
from opendino.models.vit import VisionTransformer

CLOSE = {"rtol": 0.0, "atol": 1e-11}  # float64; the two differ in the order of sums, up to 768 terms, 12 blocks


@pytest.fixture(scope="module")
def pair() -> tuple[VisionTransformer, TimmBackbone]:
    """timm's ViT-Ti/16 in float64 and ours with its weights."""
    torch.manual_seed(0)
    theirs = backbone("vit_tiny_patch16_224").double().eval()
    ours = backbone("vit_tiny/16").double().eval()
    assert isinstance(ours, VisionTransformer)
    assert isinstance(theirs, TimmBackbone)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    ours.load_state_dict(theirs.model.state_dict())  # strict: the same keys
    return ours, theirs


@torch.no_grad()
def test_same_weights_same_numbers(pair: tuple[VisionTransformer, TimmBackbone]) -> None:
    ours, theirs = pair
    images = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    torch.testing.assert_close(ours([images])[0], theirs([images])[0], **CLOSE)
    mine, other = ours.features(images), theirs.features(images)
    assert mine.grid == other.grid
    torch.testing.assert_close(mine.cls, other.cls, **CLOSE)
    torch.testing.assert_close(mine.patches, other.patches, **CLOSE)
    torch.testing.assert_close(ours.attention(images), theirs.attention(images), **CLOSE)


@torch.no_grad()
def test_registers_have_the_same_position_as_in_timm() -> None:
    torch.manual_seed(0)
    sizes = {"embed_dim": 48, "depth": 2, "num_heads": 3, "image_px": 56}
    theirs = backbone("vit_base_patch14_reg4_dinov2", init_values=0.0, **sizes).double().eval()
    ours = backbone("vit/14", num_registers=4, **sizes).double().eval()
    assert isinstance(theirs, TimmBackbone)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    state = theirs.model.state_dict()
    # There the class token has no position of its own; ours is added to it.
    state["pos_embed"] = torch.cat([torch.zeros(1, 1, 48, dtype=torch.float64), state["pos_embed"]], dim=1)
    ours.load_state_dict(state)
    images = torch.randn(2, 3, 56, 56, dtype=torch.float64)
    mine, other = ours.features(images), theirs.features(images)
    for name in ("cls", "registers", "patches"):
        torch.testing.assert_close(getattr(mine, name), getattr(other, name), msg=name, **CLOSE)
    torch.testing.assert_close(ours.attention(images), theirs.attention(images), **CLOSE)
