"""Copies by pixels: saved again, smaller, a little brighter; not a shifted texture, not another brightness."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image, ImageEnhance

from opendino.data.sources import toy
from opendino.features.pixel_copies import copies, thumbnail

SOURCE = toy.build("toy:forms?n=30&size=96")


def picture(index: int) -> Image.Image:
    return Image.fromarray(SOURCE.read(index))


def saved(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


@pytest.mark.parametrize("change", ["jpeg", "half", "brighter", "gray"])
def test_altered_copies_are_copies(change: str) -> None:
    altered = {
        "jpeg": lambda image: saved(image, 40),
        "half": lambda image: image.resize((48, 48)),
        "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.02),
        "gray": lambda image: image.convert("L"),
    }[change]
    originals = [picture(index) for index in range(30)]
    thumbnails = torch.stack([thumbnail(image) for image in [*originals, *map(altered, originals)]])
    assert copies(thumbnails, chunk=7).tolist() == [*range(30)] * 2


def test_what_differs_is_no_copy() -> None:
    base = picture(0)
    others = [base.transpose(Image.Transpose.FLIP_LEFT_RIGHT), base.crop((10, 10, 96, 96)), picture(1)]
    others += [
        ImageEnhance.Brightness(base).enhance(1.3),
        Image.new("RGB", (9, 9), "#101010"),
        Image.new("RGB", (9, 9)),
    ]
    thumbnails = torch.stack([thumbnail(image) for image in [base, *others]])
    assert copies(thumbnails).tolist() == [*range(7)]


def test_copies_of_copies_belong_to_the_first_and_unread_images_to_none() -> None:
    flat = [Image.new("RGB", (8, 8), (level,) * 3) for level in (10, 11, 12, 13)]  # the ends differ by 3 levels
    thumbnails = torch.stack([thumbnail(image) for image in [None, *flat, None]])
    assert copies(thumbnails).tolist() == [0, 1, 1, 1, 1, 5]
