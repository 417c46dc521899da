"""Resizing of images of any number of channels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from opendino.models.resize import center_crop, resize, thumbnail, to_unit

BICUBIC = Image.Resampling.BICUBIC


def noise(*shape: int, dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def test_photographs_as_pillow_resizes_them() -> None:
    photo = noise(30, 40, 3)
    image = Image.fromarray(photo)
    assert np.array_equal(resize(photo, (17, 12), BICUBIC), np.array(image.resize((17, 12), BICUBIC)))
    image.thumbnail((9, 9), Image.Resampling.LANCZOS)
    assert np.array_equal(thumbnail(photo, 9), np.array(image))
    assert np.array_equal(thumbnail(photo, 99), photo)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_channels_do_not_mix_and_16_bits_are_kept(channels: int) -> None:
    deep = noise(30, 40, channels, dtype="uint16")
    found = resize(deep, (20, 15), BICUBIC)
    assert (found.shape, found.dtype) == ((15, 20, channels), np.float32) and found.min() >= 0 and found.max() <= 1
    for channel in range(channels):
        assert np.array_equal(found[..., channel], resize(deep[..., channel : channel + 1], (20, 15), BICUBIC)[..., 0])
    assert np.array_equal(resize(deep, (40, 30), BICUBIC), to_unit(deep)), "the same size changes nothing"


def test_the_same_picture_of_8_and_16_bits_is_resized_alike() -> None:
    shallow = noise(30, 40, 3)
    deep = shallow.astype(np.uint16) * 257
    difference = np.abs(resize(shallow, (17, 12), BICUBIC) / 255 - resize(deep, (17, 12), BICUBIC))
    assert difference.max() < 1.01 / 255


@pytest.mark.parametrize("size", [(6, 6), (5, 8), (9, 3), (40, 40)])
def test_the_middle_as_pillow_crops_it(size: tuple[int, int]) -> None:
    photo, (width, height) = noise(8, 7, 3), size
    left, top = round((7 - width) / 2), round((8 - height) / 2)
    expected = Image.fromarray(photo).crop((left, top, left + width, top + height))
    assert np.array_equal(center_crop(photo, width, height), np.array(expected))
