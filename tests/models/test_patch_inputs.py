"""Patches: their size as the network tells it, and pixels as it wants them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from opendino.core.errors import UserError
from opendino.models.build import backbone
from opendino.models.load import Model, preprocessing
from opendino.models.module_backbone import ModuleBackbone
from opendino.models.patch_inputs import patch_px, to_network_input


@pytest.mark.parametrize(
    ("name", "options", "image_px", "expected"),
    [
        ("vit/4", {"embed_dim": 8, "depth": 1, "num_heads": 1}, 16, 4),
        ("conv4", {"width": 2}, 32, 8),
        ("test_vit", {"image_px": 32}, 32, 16),
        ("test_resnet", {}, 64, 32),
    ],
)
def test_the_side_of_a_patch(name: str, options: dict, image_px: int, expected: int) -> None:
    options = {"image_px": image_px, **options}
    assert patch_px(Model(backbone(name, **options), preprocessing(image_px), {})) == expected


def test_a_network_without_a_map_has_no_patches() -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    model = Model(ModuleBackbone(module, "mean", {}), preprocessing(32), {})
    with pytest.raises(UserError, match="mean gives one vector for an image and no map of it"):
        patch_px(model)


def test_normalized_as_trained() -> None:
    model = Model(backbone("conv4", width=2), preprocessing(32, mean=(0.5, 0, 1), std=(0.5, 1, 2)), {})
    found = to_network_input(np.array([[[255, 0, 255], [0, 51, 0]]], np.uint8), model)
    expected = torch.tensor([[[[1, -1]], [[0, 0.2]], [[0, -0.5]]]])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
