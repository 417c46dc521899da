"""Features of whole images: GeM by its formula, sizes that a network takes, several scales."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.factories import noise_image
from torch.nn.functional import interpolate

from opendino.core.contracts import Backbone
from opendino.core.errors import UserError
from opendino.models.conv4 import Conv4
from opendino.models.global_descriptor import SCALES, Descriptor, gem, side_step
from opendino.models.load import Model, preprocessing
from opendino.models.timm_backbone import TimmBackbone
from opendino.models.vit import VisionTransformer


def model(backbone: Backbone | None = None) -> Model:
    backbone = backbone or VisionTransformer(image_px=32, patch_px=8, embed_dim=12, depth=1, num_heads=2)
    return Model(backbone, preprocessing(32), {})


def noise_pixels(width: int, height: int) -> np.ndarray:
    return np.asarray(noise_image(width, height))


def fixed_size() -> Model:
    sizes = {"patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 2, "dynamic_img_size": False}
    return model(TimmBackbone("vit_tiny_patch16_224", image_px=32, **sizes))


@pytest.mark.parametrize("power", [1.0, 3.0, 4.0])
def test_gem_is_its_formula(power: float) -> None:
    patches = torch.randn(2, 7, 5, dtype=torch.float64)
    expected = np.mean(np.maximum(patches.numpy(), 1e-6) ** power, axis=1) ** (1 / power)
    assert np.allclose(gem(patches, power).numpy(), expected, rtol=1e-13)


def test_gem_goes_from_the_mean_to_the_maximum() -> None:
    patches = torch.rand(1, 9, 4, dtype=torch.float64) + 0.5
    assert torch.allclose(gem(patches, 1), patches.mean(1))
    assert torch.allclose(gem(patches, 500), patches.amax(1), rtol=1e-2)  # within 9^(1/500)


def test_what_sides_a_network_takes_is_found_out() -> None:
    assert side_step(model()) == 8
    assert side_step(model(Conv4(width=2))) == 1
    assert side_step(fixed_size()) is None


def test_images_keep_their_aspect_and_are_never_enlarged() -> None:
    sees = Descriptor(model(), 40)
    assert sees.prepare(noise_pixels(80, 40)).shape == (3, 20, 40)
    assert sees.prepare(noise_pixels(30, 17)).shape == (3, 17, 30)
    assert Descriptor(model(), 40, fit="square").prepare(noise_pixels(30, 17)).shape == (3, 40, 40)


def test_what_exceeds_a_multiple_of_the_patch_is_cut_off() -> None:
    network = model()
    pixels = torch.randn(2, 3, 29, 45)
    assert torch.equal(Descriptor(network, 64)(pixels), network.embed(pixels[:, :, :24, :40]))


def test_several_scales_are_averaged_each_cut_by_itself() -> None:
    network = model()
    pixels = torch.randn(2, 3, 40, 72)
    expected = torch.zeros(2, 12)
    for scale, rows, columns in zip(SCALES, (40, 24, 16), (72, 48, 32), strict=True):
        scaled = interpolate(pixels, scale_factor=scale, mode="bilinear", align_corners=False)
        expected += network.embed(scaled[:, :, :rows, :columns]) / 3
    assert torch.allclose(Descriptor(network, 72, scales=SCALES)(pixels), expected, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (50, 3), (9, 9)])
def test_images_smaller_than_a_patch_are_enlarged_to_one(size: tuple[int, int]) -> None:
    sees = Descriptor(model(), 32, scales=SCALES)
    assert sees(sees.prepare(noise_pixels(*size))[None]).isfinite().all()


def test_cls_and_gem_one_after_the_other() -> None:
    network, pixels = model(), torch.randn(2, 3, 32, 32)
    seen = network.features(pixels)
    both = Descriptor(network, 32, fit="square", pool="cls+gem", power=4)(pixels)
    assert torch.equal(both, torch.cat([seen.cls, gem(seen.patches, 4)], 1))
    assert torch.equal(Descriptor(network, 32, pool="gem", power=4)(pixels), both[:, 12:])


def test_a_network_of_one_size_falls_back_to_its_own_preprocessing() -> None:
    network = fixed_size()
    sees = Descriptor(network, 64, scales=SCALES)
    assert torch.equal(sees.prepare(noise_pixels(90, 60)), network.preprocess(noise_image(90, 60)))
    assert "32 px, the only size this network accepts" in sees.protocol and "scales" not in sees.protocol
    prepared = sees.prepare(noise_pixels(90, 60))[None]
    assert torch.equal(sees(prepared), network.embed(prepared))


def test_the_protocol_says_what_was_done() -> None:
    assert Descriptor(model(), 48, fit="square", pool="cls+gem", power=4).protocol == (
        "CLS and GeM of patches (p = 4); images resized to 48 px square"
    )
    assert Descriptor(model(), 48, scales=SCALES).protocol == (
        "image feature (CLS); images shrunk to at most 48 px a side, cropped at the right and bottom to "
        "multiples of 8 px, mean over scales 1 0.707 0.5"
    )


def test_gem_without_a_grid_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    network = model()
    sees = Descriptor(network, 32, pool="gem")

    def none(images: torch.Tensor) -> None:
        raise NotImplementedError("no grid here")

    monkeypatch.setattr(network.backbone, "features", none)
    with pytest.raises(UserError, match=r"no grid here\. Use --pool cls"):
        sees(torch.randn(1, 3, 32, 32))
