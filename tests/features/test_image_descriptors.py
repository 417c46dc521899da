"""Descriptors of whole images: those of one image at a time, for images of several sizes and several views of each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UserError
from opendino.features.image_descriptors import Describe, describe_images
from opendino.models.build import backbone
from opendino.models.global_descriptor import Descriptor
from opendino.models.load import Model, preprocessing

SIZES = [(24, 16), (16, 24), (24, 16), (40, 16), (16, 16), (24, 16)]


class Noise(Source):
    """Images of several sizes; those in `torn` cannot be read."""

    def __init__(self, torn: tuple[int, ...] = ()) -> None:
        self.torn = torn

    def __len__(self) -> int:
        return len(SIZES)

    def key(self, index: int) -> str:
        return f"{index}.png"

    def label(self, index: int) -> int:
        return -1

    def read(self, index: int) -> np.ndarray:
        if index in self.torn:
            raise BadImage("torn")
        return np.random.default_rng(index).integers(0, 256, (*SIZES[index], 3), np.uint8)


@pytest.fixture(scope="module")
def descriptor() -> Descriptor:
    torch.manual_seed(0)
    network = backbone("vit/8", image_px=16, embed_dim=24, depth=2, num_heads=2)
    return Descriptor(Model(network, preprocessing(16), {}), 40, scales=(1.0, 0.5))


def alone(descriptor: Descriptor, image: Image.Image) -> torch.Tensor:
    return descriptor(descriptor.prepare(np.asarray(image))[None])[0]


@pytest.mark.parametrize("batch", [1, 4])
def test_each_image_has_its_own_descriptor(descriptor: Descriptor, batch: int) -> None:
    source = Noise(torn=(1,))
    found = describe_images(descriptor, source, [5, 1, 0, 3], batch=batch)
    assert found.kept == [0, 2, 3] and found.bad == [("1.png", "torn")] and found.features.shape == (3, 1, 24)
    plain = torch.stack([alone(descriptor, Image.fromarray(source.read(index))) for index in (5, 0, 3)])
    # batches of several images sum in another order; one at a time there is no difference
    torch.testing.assert_close(found.features[:, 0], plain, rtol=0, atol=0 if batch == 1 else 1e-5)


def test_views_of_an_image_stay_together(descriptor: Descriptor) -> None:
    def views(position: int, image: Image.Image) -> list[Image.Image]:
        if position == 2:
            raise BadImage("its box is outside")
        return [image, image.crop((0, 0, 16, 8 + 8 * (position % 2)))]

    source = Noise()
    found = describe_images(descriptor, source, views=views, batch=3)
    assert found.kept == [0, 1, 3, 4, 5] and found.bad == [("2.png", "its box is outside")]
    for row, index in enumerate(found.kept):
        for view, image in enumerate(views(index, Image.fromarray(source.read(index)))):
            torch.testing.assert_close(found.features[row, view], alone(descriptor, image), rtol=0, atol=1e-5)


def test_no_image_and_broken_weights_are_told(descriptor: Descriptor) -> None:
    with pytest.raises(UserError, match=r"None of the 2 images can be read, e\.g\. 3\.png: torn"):
        describe_images(descriptor, Noise(torn=(3, 4)), [3, 4])
    broken = Model(backbone("conv4", width=2), preprocessing(16), {})
    torch.nn.init.constant_(next(broken.backbone.parameters()), float("nan"))
    with pytest.raises(UserError, match="NaN or infinite"):
        describe_images(Descriptor(broken, 16), Noise())


def test_described_vectors_have_unit_length(descriptor: Descriptor) -> None:
    describe = Describe(descriptor, torch.device("cpu"), None, centered=True, batch=4)
    plain, found = describe_images(descriptor, Noise(), batch=4), describe(Noise())
    torch.testing.assert_close(found.features.norm(dim=2), torch.ones(6, 1), rtol=0, atol=1e-6)
    assert torch.equal(found.features, torch.nn.functional.normalize(plain.features, dim=2))
